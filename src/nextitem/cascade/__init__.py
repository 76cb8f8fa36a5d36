"""Classic cascade: retrieval, ranking and re-ranking as one recommender, with the re-rankers."""
