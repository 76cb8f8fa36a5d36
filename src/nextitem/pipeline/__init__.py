"""Composes a run from a recipe; saves and loads bundles."""
