"""Tokenizers, which turn content vectors of items into semantic IDs; one per file."""
