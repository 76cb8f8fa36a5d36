"""Parts of `nextitem scale`: families, counts of operations, the runs and their outcome."""
