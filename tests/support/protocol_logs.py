"""Small logs whose splits can be written by hand, and functions that return splits in a readable form."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import polars as pl

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.data.readers import dataset_from_frames


def data(settings: dict[str, Any] | None = None, **columns: Any) -> Dataset:
    return dataset_from_frames({"interactions": pl.DataFrame(columns)}, settings)


def logs(*users: str, **more: Any) -> Dataset:
    """Return an undated log with one user for each text and one event for each letter; letters are the items."""
    rows = [(user, letter, place) for user, text in enumerate(users) for place, letter in enumerate(text)]
    user, item, position = zip(*rows, strict=True)
    return data(more.pop("settings", None), user_id=user, item_id=item, position=position, **more)


def words(dataset: Dataset, requests: SequenceBatch) -> list[tuple[str, str]]:
    """Return (history, targets) of every request, as letters."""
    assert requests.targets is not None
    return [
        ("".join(dataset.catalog.ids.decode(np.array(h))), "".join(dataset.catalog.ids.decode(np.array(t))))
        for h, t in zip(requests.items.to_lists(), requests.targets.to_lists(), strict=True)
    ]


def training_items(dataset: Dataset) -> list[str]:
    """Return the training events of each user with events, as letters; an event without an item is "?"."""
    parts: dict[int, str] = defaultdict(str)
    log = dataset.interactions
    for user, item in zip(log.user_ids.tolist(), dataset.catalog.ids.decode(log.item_ids), strict=True):
        parts[user] += item or "?"
    return [parts[user] for user in sorted(parts)]


def impression_log(has_event_times: bool = True) -> Dataset:
    impressions = pl.DataFrame(
        {
            "impression_id": np.repeat(np.arange(20), 2),
            "item_id": [*"ab"] * 20,
            # The second row of a request is a little later, and belongs to the request nevertheless.
            "timestamp": np.repeat(np.arange(20) * 10, 2) + np.tile([0, 9], 20) + 1_000,
            "user_id": np.repeat([1, 2], 20),
            "click": [1, 0] * 20,
            "slot": [1, 2] * 20,
            "device": ["web", "app"] * 20,
        }
    )
    order = {"timestamp": [900, 1_175, 1_190, 1_191, 900]} if has_event_times else {"position": [0, 1, 2, 3, 0]}
    log = pl.DataFrame({"user_id": [2, 2, 2, 2, 1], "item_id": [*"abaca"], **order})
    settings = {"impressions": {"labels": ["click"], "context": {"device": "categorical"}}}
    return dataset_from_frames({"interactions": log, "impressions": impressions}, settings)


def logs_with_impressions() -> Dataset:
    log = pl.DataFrame({"user_id": [1, 1, 1, 2], "item_id": [*"abcd"], "position": [0, 1, 2, 0]})
    impressions = pl.DataFrame({"impression_id": [1, 2], "item_id": [*"ab"], "timestamp": [1, 2], "user_id": [1, 2]})
    return dataset_from_frames({"interactions": log, "impressions": impressions})
