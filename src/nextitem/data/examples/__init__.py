"""Training examples: one file for each kind, with its own frozen batch type."""
