"""Parts of a tuning: search space, proposals, trials, the search over them, and its outcome."""
