"""Presentation of evaluations: tables on the terminal, plots, the HTML report."""
