"""Runs that serve simulated customers in process."""
