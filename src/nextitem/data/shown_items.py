"""ShownItems: the impressions of a log by user and time, so that requests can contain what was shown before them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from nextitem.core.dataset import Impressions
from nextitem.core.jagged import Jagged, offsets_of, ranges

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ShownItems:
    """Items shown to known users, sorted by user and time; items shown at the same time keep their order.

    Attributes:
        users: [T] int64, 1..U.
        items: [T] int64.
        times: [T] int64, milliseconds.
        labels: name -> [T] float32; NaN: not known.
        distinct_times: the times that occur, ascending.

    """

    users: Rows
    items: Rows
    times: Rows
    labels: dict[str, NDArray[np.float32]]
    distinct_times: Rows

    @classmethod
    def of(cls, impressions: Impressions | None) -> ShownItems | None:
        """Return the items shown to known users, or None if no impression of a known user has a time."""
        if impressions is None or impressions.timestamps is None or not (impressions.user_ids > 0).any():
            return None
        rows = np.lexsort((impressions.timestamps, impressions.user_ids))
        rows = rows[impressions.user_ids[rows] > 0]
        labels = {
            name: impressions.columns[name].cast(pl.Float32).fill_null(float("nan")).to_numpy()[rows]
            for name in impressions.labels
        }
        times = impressions.timestamps[rows].astype(np.int64)
        users, items = impressions.user_ids[rows].astype(np.int64), impressions.item_ids[rows].astype(np.int64)
        return cls(users, items, times, labels, np.unique(times))

    def before(self, users: Rows, times: Rows) -> dict[str, Any]:
        """Return what users were shown strictly before times, as columns of a SequenceBatch with one row for each.

        Args:
            users: numbers of the users, [B]; 0: unknown, who were shown nothing.
            times: times in milliseconds, [B].

        """
        span = np.int64(len(self.distinct_times) + 1)
        starts = np.searchsorted(self._keys, users * span)
        ends = np.searchsorted(self._keys, users * span + np.searchsorted(self.distinct_times, times))
        lengths = torch.from_numpy(np.where(users > 0, ends - starts, 0))
        rows, offsets = ranges(torch.from_numpy(starts), lengths).numpy(), offsets_of(lengths)

        def column(values: NDArray[Any]) -> Jagged:
            return Jagged(torch.from_numpy(values[rows]), offsets)

        labels = {name: column(values) for name, values in self.labels.items()}
        return {"shown_items": column(self.items), "shown_times": column(self.times), "shown_labels": labels}

    @cached_property
    def _keys(self) -> Rows:
        """Return user and time of each row as one sortable integer; with ranks instead of times it cannot overflow."""
        span = np.int64(len(self.distinct_times) + 1)
        return self.users * span + np.searchsorted(self.distinct_times, self.times)
