"""Fused kernels for GPUs; each computes what the function of the same name in `nextitem.ops` does, which calls it."""
