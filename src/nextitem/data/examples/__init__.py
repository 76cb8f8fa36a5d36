"""One file per kind of training example, each with its own frozen batch."""
