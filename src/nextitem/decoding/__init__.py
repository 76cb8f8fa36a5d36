"""Constrained generation, written once for every model that implements `start` and `step` (roles.Generator)."""
