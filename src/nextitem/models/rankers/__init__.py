"""Rankers: models that score given candidates. They share `ranking_model.py`; each file adds what is its own."""
