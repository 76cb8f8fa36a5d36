"""Constrained generation, written once for everything that offers start and step."""
