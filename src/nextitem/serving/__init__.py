"""Serving: answers to single requests, in batches, with the events that users have sent since training."""
