"""Helpers that several tests share: known data sets, fake models, peers."""
