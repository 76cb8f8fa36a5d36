"""Attention blocks, their key/value caches, and incremental encoding of histories."""
