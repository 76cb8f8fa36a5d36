"""Neighbourhoods of items and users: sparse rows, votes of neighbours, item similarity, vector indexes."""
