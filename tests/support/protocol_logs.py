"""Small logs whose splits can be written out by hand, and splits in readable form."""

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
    """One user for each text, an item for each letter; undated."""
    rows = [(user, letter, place) for user, text in enumerate(users) for place, letter in enumerate(text)]
    user, item, position = zip(*rows, strict=True)
    return data(more.pop("settings", None), user_id=user, item_id=item, position=position, **more)


def words(dataset: Dataset, requests: SequenceBatch) -> list[tuple[str, str]]:
    """(history, targets) of every request, as letters."""
    assert requests.targets is not None
    return [
        ("".join(dataset.catalog.ids.decode(np.array(h))), "".join(dataset.catalog.ids.decode(np.array(t))))
        for h, t in zip(requests.items.to_lists(), requests.targets.to_lists(), strict=True)
    ]


def learnt(dataset: Dataset) -> list[str]:
    """What each user leaves to learn from, as letters; users without events left out."""
    parts: dict[int, str] = defaultdict(str)
    log = dataset.interactions
    for user, item in zip(log.user_ids.tolist(), dataset.catalog.ids.decode(log.item_ids), strict=True):
        parts[user] += item or "?"
    return [parts[user] for user in sorted(parts)]


def impression_log(events_dated: bool = True) -> Dataset:
    shown = pl.DataFrame(
        {
            "impression_id": np.repeat(np.arange(20), 2),
            "item_id": [*"ab"] * 20,
            # The second row of a request comes a little later: it belongs to the request all the same.
            "timestamp": np.repeat(np.arange(20) * 10, 2) + np.tile([0, 9], 20) + 1_000,
            "user_id": np.repeat([1, 2], 20),
            "click": [1, 0] * 20,
            "slot": [1, 2] * 20,
            "device": ["web", "app"] * 20,
        }
    )
    order = {"timestamp": [900, 1_175, 1_190, 1_191, 900]} if events_dated else {"position": [0, 1, 2, 3, 0]}
    log = pl.DataFrame({"user_id": [2, 2, 2, 2, 1], "item_id": [*"abaca"], **order})
    chosen = {"impressions": {"labels": ["click"], "context": {"device": "categorical"}}}
    return dataset_from_frames({"interactions": log, "impressions": shown}, chosen)


def logs_with_impressions() -> Dataset:
    log = pl.DataFrame({"user_id": [1, 1, 1, 2], "item_id": [*"abcd"], "position": [0, 1, 2, 0]})
    shown = pl.DataFrame({"impression_id": [1, 2], "item_id": [*"ab"], "timestamp": [1, 2], "user_id": [1, 2]})
    return dataset_from_frames({"interactions": log, "impressions": shown})
