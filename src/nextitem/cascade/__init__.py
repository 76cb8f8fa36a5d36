"""The classic cascade: retrieval, ranking and re-ranking as one recommender; here stand its re-rankers."""
