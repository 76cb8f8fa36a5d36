"""Numerical operations with a fast version: each public function has a plain reference, and tests compare the two."""
