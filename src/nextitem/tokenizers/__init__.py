"""Semantic-ID tokenizers, one per file."""
