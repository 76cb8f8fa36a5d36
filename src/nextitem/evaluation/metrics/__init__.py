"""Metrics on lists of items, one idea per file."""
