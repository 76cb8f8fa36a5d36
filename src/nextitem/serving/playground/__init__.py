"""Playground: the page at /, on which a person tries the served models, and the read-only routes behind it."""
