"""The simulated shop: a data set whose ground truth is known."""
