"""Attention blocks, their caches, and how a history is continued."""
