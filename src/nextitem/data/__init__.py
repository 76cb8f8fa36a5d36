"""Data sets and training examples: readers, importers, downloads, protocols, text vectors, and the simulated shop."""
