"""Layers of rankers: perceptrons, crosses, gates, task towers, calibration."""
