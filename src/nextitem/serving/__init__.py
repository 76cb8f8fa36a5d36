"""Recommending over HTTP: stores of events, and what is built on them."""
