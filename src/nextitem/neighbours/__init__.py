"""Neighbourhoods of items and users: sparse rows, votes, similarity, vector indexes."""
