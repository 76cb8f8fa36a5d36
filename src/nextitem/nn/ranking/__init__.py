"""Layers of rankers: perceptrons, cross networks, field gates, task towers, history search, calibration."""
