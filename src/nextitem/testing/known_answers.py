"""Tiny data sets with known right answers. A model declares which of them it must solve."""

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
    """Return a dated data set of item sequences, one for each user.

    Args:
        sequences: item numbers 1..N of each user, oldest first. One hour lies between two events of a user.
        texts: titles of items 1..N.
        name: name and fingerprint of the data set.

    Returns:
        A data set with users u1, u2, ... and items i1, i2, ...

    """
    items = [item for sequence in sequences for item in sequence]
    users = [user for user, sequence in enumerate(sequences, start=1) for _ in sequence]
    times = [1_600_000_000_000 + 3_600_000 * step for sequence in sequences for step in range(len(sequence))]
    log = Interactions(
        np.array(users, np.int32), np.array(items, np.int32), len(sequences), len(texts), timestamps=np.array(times)
    )
    ids = pl.Series("item_id", [f"i{number}" for number in range(1, len(texts) + 1)])
    table = pl.DataFrame({"item_id": ids, "title": texts})
    catalog = Catalog(IdMap(ids), table, text=pl.Series(texts))
    user_table = Users(IdMap(pl.Series("user_id", [f"u{number}" for number in range(1, len(sequences) + 1)])))
    return Dataset(name, log, catalog, user_table, fingerprint=name)


def cycle() -> Dataset:
    """Return a data set in which item i is followed by i + 1, and the last item by the first."""
    rng = np.random.default_rng(1)
    starts = rng.integers(0, 12, 80)
    lengths = rng.integers(5, 10, 80)
    sequences = [
        [int((start + step) % 12) + 1 for step in range(length)] for start, length in zip(starts, lengths, strict=True)
    ]
    return build(sequences, [f"thing {'abcdefghijkl'[i]}x" for i in range(12)], name="cycle")


def checkerboard() -> Dataset:
    """Return a data set in which the items of each user have one parity, in random order."""
    rng = np.random.default_rng(2)
    sequences = [(rng.permutation(10)[:7] * 2 + 1 + user % 2).tolist() for user in range(80)]
    return build(sequences, [f"piece number{i % 2} {WORDS[i % 5]}" for i in range(20)], name="checkerboard")


def planted_clusters() -> Dataset:
    """Return a data set in which each user stays within one of five clusters; titles contain the cluster."""
    rng = np.random.default_rng(3)
    sequences = [(rng.permutation(6)[:5] + 6 * (user % 5) + 1).tolist() for user in range(80)]
    return build(sequences, [f"{WORDS[i // 6]} model{i % 6}" for i in range(30)], name="planted-clusters")


def partly_unseen(*, with_column: bool = False) -> Dataset:
    """Return a data set of planted clusters of seven items, the last of which has no event (items 7, 14, 21, 28, 35).

    With `with_column`, the catalogue has each item's cluster in the categorical column `kind`, too.
    """
    rng = np.random.default_rng(4)
    sequences = [(rng.permutation(6)[:5] + 7 * (user % 5) + 1).tolist() for user in range(80)]
    dataset = build(sequences, [f"{WORDS[i // 7]} model{i % 7}" for i in range(35)], name="partly-unseen")
    if not with_column:
        return dataset
    table = dataset.catalog.table.with_columns(pl.Series("kind", [WORDS[i // 7] for i in range(35)]))
    return dataset.with_catalog(replace(dataset.catalog, table=table, features={"kind": "categorical"}))


def share_right(name: str, dataset: Dataset, answer: Recommendations, last_items: np.ndarray) -> float:
    """Return the share of right answers among the first recommended items.

    On cycle, the first item must be the next of the cycle. Else each of the first two items must be of the same group
    (parity or cluster) as the last item of the history.

    Args:
        name: name of the data set in DATASETS.
        dataset: the data set, which is not read.
        answer: recommendations of R requests.
        last_items: last item of the history of each request, [R].

    """
    ids = answer.item_ids.numpy()
    if name == "cycle":
        return float((ids[:, 0] == last_items % 12 + 1).mean())
    group: Callable[[np.ndarray], np.ndarray] = (
        (lambda items: items % 2) if name == "checkerboard" else (lambda items: (items - 1) // 6)
    )
    # Only two items: no more of a planted cluster may be unseen.
    return float((group(ids[:, :2]) == group(last_items)[:, None]).mean())


DATASETS = {"cycle": cycle, "checkerboard": checkerboard, "planted-clusters": planted_clusters}
