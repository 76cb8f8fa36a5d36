"""From a dataset folder to training examples: readers, the simulated shop, download, splits, text vectors."""
