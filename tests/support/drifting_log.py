"""A log whose tastes drift: after a while, items have other successors than before, and new items appear."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

START = 1_700_000_000  # seconds
PERIOD = 10 * 86_400  # seconds of each of the two periods


@dataclass(frozen=True)
class DriftingLog:
    """Events and items of two periods, as tables of a data set."""

    former: pl.DataFrame
    later: pl.DataFrame
    items: pl.DataFrame
    new_items: pl.DataFrame

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write a dataset folder for each period, and return both."""
        places = (folder / "data", folder / "events")
        for place, events, items in zip(places, (self.former, self.later), (self.items, self.new_items), strict=True):
            place.mkdir(parents=True)
            events.write_parquet(place / "interactions.parquet")
            items.write_parquet(place / "items.parquet")
        return places


def drifting_log(
    seed: int = 0, *, num_users: int = 150, num_items: int = 40, num_new: int = 8, drift: float = 0.4, length: int = 12
) -> DriftingLog:
    """Return a log in which a user moves from an item to its successor with probability 0.9, else anywhere.

    In the second period the share `drift` of the items have other successors, some of them new items. Each user has
    `length` events in each period.
    """
    rng = np.random.default_rng(seed)
    total = num_items + num_new
    before = np.concatenate([np.roll(rng.permutation(num_items), 1), np.zeros(num_new, np.int64)])
    after = before.copy()
    changed = rng.choice(num_items, round(drift * num_items), replace=False)
    after[changed] = rng.permutation(np.concatenate([np.arange(num_items, total), rng.permutation(num_items)]))[
        : len(changed)
    ]
    after[num_items:] = rng.integers(0, num_items, num_new)
    former = _walks(rng, before, num_users, num_items, length, START)
    later = _walks(rng, after, num_users, total, length, START + PERIOD)
    titles = [f"kind{item % 5} shape{item % 7} item{item}" for item in range(total)]
    items = pl.DataFrame({"item_id": [f"i{item:03d}" for item in range(total)], "title": titles})
    return DriftingLog(former, later, items.head(num_items), items.tail(num_new))


def shuffled(events: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """Return the events with their items in random order: each item is as frequent as before, and nothing follows."""
    order = np.random.default_rng(seed).permutation(events.height)
    return events.with_columns(events["item_id"].gather(order))


def _walks(
    rng: np.random.Generator, successors: np.ndarray, num_users: int, num_items: int, length: int, start: int
) -> pl.DataFrame:
    users, items, times = [], [], []
    for user in range(num_users):
        item = int(rng.integers(num_items))
        for time in np.sort(rng.choice(PERIOD, length, replace=False)):
            users.append(f"u{user:04d}")
            items.append(f"i{item:03d}")
            times.append(start + int(time))
            item = int(successors[item]) if rng.random() < 0.9 else int(rng.integers(num_items))
    frame = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": times})
    return frame.sort("timestamp")
