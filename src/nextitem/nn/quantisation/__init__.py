"""Codebooks and trees that turn vectors into codes."""
