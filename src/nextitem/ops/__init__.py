"""Numerics that may have a fast version: a public function, its plain reference, both shown equal."""
