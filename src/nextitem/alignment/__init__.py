"""Alignment: train a generator towards a reward, by the lists that it generates itself."""
