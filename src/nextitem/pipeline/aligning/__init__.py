"""Alignment of a run: reward models, figures of lists, and the files of the aligned run."""
