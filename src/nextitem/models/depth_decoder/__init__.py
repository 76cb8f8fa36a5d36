"""Depth decoder: a transformer over items, and a small network that generates the codes of the next item."""
