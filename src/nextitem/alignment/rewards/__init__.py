"""Rewards of lists: models of clicks, purchases and whole sessions, legality, exposure and business rules."""
