"""Tiny data sets whose right answer is known. A model declares which of them it must solve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl

from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset, Users
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.core.recommendations import Recommendations

WORDS = ["tent canvas pole", "kettle steel lid", "violin bow string", "rope knot anchor", "brush oil easel"]


def build(sequences: list[list[int]], texts: list[str], *, name: str) -> Dataset:
    """A dated data set from item sequences (numbers 1..N), one a user."""
    items = [item for sequence in sequences for item in sequence]
    users = [user for user, sequence in enumerate(sequences, start=1) for _ in sequence]
    times = [1_600_000_000_000 + 3_600_000 * step for sequence in sequences for step in range(len(sequence))]
    log = Interactions(
        np.array(users, np.int32), np.array(items, np.int32), len(sequences), len(texts), timestamps=np.array(times)
    )
    ids = pl.Series("item_id", [f"i{number}" for number in range(1, len(texts) + 1)])
    table = pl.DataFrame({"item_id": ids, "title": texts})
    catalog = Catalog(IdMap(ids), table, text=pl.Series(texts))
    people = Users(IdMap(pl.Series("user_id", [f"u{number}" for number in range(1, len(sequences) + 1)])))
    return Dataset(name, log, catalog, people, fingerprint=name)


def cycle() -> Dataset:
    """Item i is followed by i + 1, the last by the first."""
    rng = np.random.default_rng(1)
    starts = rng.integers(0, 12, 80)
    lengths = rng.integers(5, 10, 80)
    sequences = [[int((start + step) % 12) + 1 for step in range(n)] for start, n in zip(starts, lengths, strict=True)]
    return build(sequences, [f"thing {'abcdefghijkl'[i]}x" for i in range(12)], name="cycle")


def checkerboard() -> Dataset:
    """Even users take even items in random order, odd users odd ones."""
    rng = np.random.default_rng(2)
    sequences = [(rng.permutation(10)[:7] * 2 + 1 + user % 2).tolist() for user in range(80)]
    return build(sequences, [f"piece number{i % 2} {WORDS[i % 5]}" for i in range(20)], name="checkerboard")


def planted_clusters() -> Dataset:
    """Users stay within one of five clusters, which the titles tell apart."""
    rng = np.random.default_rng(3)
    sequences = [(rng.permutation(6)[:5] + 6 * (user % 5) + 1).tolist() for user in range(80)]
    return build(sequences, [f"{WORDS[i // 6]} model{i % 6}" for i in range(30)], name="planted-clusters")


def partly_unseen(*, with_column: bool = False) -> Dataset:
    """Planted clusters of seven items, of which the last has no event: items 7, 14, 21, 28 and 35.

    `with_column`: the catalogue names each item's cluster in a categorical column, too.
    """
    rng = np.random.default_rng(4)
    sequences = [(rng.permutation(6)[:5] + 7 * (user % 5) + 1).tolist() for user in range(80)]
    dataset = build(sequences, [f"{WORDS[i // 7]} model{i % 7}" for i in range(35)], name="partly-unseen")
    if not with_column:
        return dataset
    table = dataset.catalog.table.with_columns(pl.Series("kind", [WORDS[i // 7] for i in range(35)]))
    return dataset.with_catalog(replace(dataset.catalog, table=table, features={"kind": "categorical"}))


def share_right(name: str, dataset: Dataset, found: Recommendations, last_items: np.ndarray) -> float:
    """Share of the first answers that are right (cycle: the very next item; else: an item of the same group)."""
    ids = found.item_ids.numpy()
    if name == "cycle":
        return float((ids[:, 0] == last_items % 12 + 1).mean())
    group: Callable[[np.ndarray], np.ndarray] = (
        (lambda items: items % 2) if name == "checkerboard" else (lambda items: (items - 1) // 6)
    )
    # Two items: of a planted cluster no more may be unseen.
    return float((group(ids[:, :2]) == group(last_items)[:, None]).mean())


DATASETS = {"cycle": cycle, "checkerboard": checkerboard, "planted-clusters": planted_clusters}
