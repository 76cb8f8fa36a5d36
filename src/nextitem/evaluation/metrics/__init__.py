"""Metrics of recommended lists and of scored candidates, one idea per file."""
