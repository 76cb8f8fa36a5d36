"""Recipes that ship with the package: <dataset>/<model>.toml, default/ (laptop size) and debug/ (seconds)."""
