"""Rankers: models that score candidates. They share `ranking_model.py`; each other file adds one network."""
