"""Shows what evaluation measured: tables on the terminal, plots, the HTML report."""
