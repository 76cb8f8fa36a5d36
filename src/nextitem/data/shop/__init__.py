"""The simulated shop: a data set whose truth is known."""
