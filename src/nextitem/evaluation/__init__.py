"""Evaluation by one protocol and one set of metrics, the same for every model."""
