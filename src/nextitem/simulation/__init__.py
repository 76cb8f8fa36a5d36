"""Customers of the simulated shop, who answer the lists of a served model."""
