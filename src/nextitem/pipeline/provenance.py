"""Checks that runs and semantic IDs from elsewhere have not learned from the test targets of this run."""

from __future__ import annotations

from nextitem.core.dataset import Dataset, Split
from nextitem.pipeline.recipe import DataTable


def data_table(table: DataTable, dataset: Dataset, split: Split) -> DataTable:
    """Return the recipe's table [data] with what determines training and test events: protocol, seed, fingerprint."""
    return table.model_copy(
        update={"protocol": split.protocol, "split_seed": split.seed, "fingerprint": dataset.fingerprint}
    )


def leak(source: DataTable, target: DataTable) -> str | None:
    """Return why training under one table may have seen test targets of another; None if it cannot have.

    The answer is a clause that names the difference and the way out.

    Args:
        source: the table [data] of a run or of semantic IDs that were trained earlier, from their recipe.toml.
        target: the table [data] that decides the test events now.

    """
    if source.protocol != target.protocol:
        return (
            f"it was trained under protocol {source.protocol}, whose training events may contain test targets of "
            f"protocol {target.protocol}; use --protocol {target.protocol} for both"
        )
    if source.split_seed != target.split_seed:
        return (
            f"protocol {source.protocol} samples users by the seed. It was trained with --seed {source.split_seed}, "
            f"so it may have seen test users of --seed {target.split_seed}; use one seed for both"
        )
    if source.refit and not target.refit:
        return "it was refit on validation events; use one trained on training events only, or --refit for both"
    return None
