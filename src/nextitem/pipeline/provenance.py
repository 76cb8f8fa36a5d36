"""Has what was learnt elsewhere seen what this run will be judged on?"""

from __future__ import annotations

from nextitem.core.dataset import Dataset, Split
from nextitem.pipeline.recipe import DataTable


def data_table(table: DataTable, dataset: Dataset, split: Split) -> DataTable:
    """Return the recipe's table of data with all that decides what is learnt and what is judged."""
    return table.model_copy(
        update={"protocol": split.protocol, "split_seed": split.seed, "fingerprint": dataset.fingerprint}
    )


def leak(learnt: DataTable, judged: DataTable) -> str | None:
    """Say why what was learnt under one table may know test targets of another; None if it cannot.

    The answer names the difference and the way out. Tables are those that runs and identifiers keep in recipe.toml.
    """
    if learnt.protocol != judged.protocol:
        return (
            f"it was learnt under protocol {learnt.protocol}, whose training events may hold test targets of protocol "
            f"{judged.protocol}; use --protocol {judged.protocol} for both"
        )
    if learnt.split_seed != judged.split_seed:
        return (
            f"protocol {learnt.protocol} samples users by the seed, and it was learnt with --seed {learnt.split_seed}: "
            f"it may know users that --seed {judged.split_seed} tests on; use one seed for both"
        )
    if learnt.refit and not judged.refit:
        return "it was refit on validation events; use what was learnt from training events only, or --refit for both"
    return None
