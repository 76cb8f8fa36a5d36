"""Steps from a recipe to a run: training, evaluation, recommendation, comparison, export, and the files of runs."""
