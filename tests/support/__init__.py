"""Helpers that several tests share: small data sets, fake models, peer implementations."""
