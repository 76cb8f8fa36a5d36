"""From a dataset folder to training examples: readers, the simulated shop, download, protocols, text vectors."""
