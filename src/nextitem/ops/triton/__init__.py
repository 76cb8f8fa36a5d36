"""Fused kernels for GPUs, each equal to the plain function of the same name one level up, which calls it there."""
