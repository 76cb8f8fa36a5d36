"""One recommender per file."""
