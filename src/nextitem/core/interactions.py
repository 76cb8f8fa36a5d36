"""Interactions: a columnar log of events, sorted by user and then by the order of the events (stable)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

if TYPE_CHECKING:
    from nextitem.core.jagged import Jagged


@dataclass(frozen=True, eq=False, repr=False)
class Interactions:
    """Event log of T events in parallel columns, sorted by user and then by the order of the events (stable).

    user_ids    [T] int32, 1..U (in a log of anonymous sessions, each session is a user)
    item_ids    [T] int32, 1..N; 0 for an event without an item (a search)
    num_users   number of users (U)
    num_items   number of items (N)
    timestamps  [T] int64, milliseconds since 1970, or None if the log has no times
    positive    [T] bool: whether the event may be a target; None: every event may
    columns     other columns of the log (action, session_id, quantity, price, query, labels, split, ...), one row for
                each event
    """

    user_ids: NDArray[np.int32]
    item_ids: NDArray[np.int32]
    num_users: int
    num_items: int
    timestamps: NDArray[np.int64] | None = None
    positive: NDArray[np.bool_] | None = None
    columns: pl.DataFrame = field(default_factory=pl.DataFrame)

    def __post_init__(self) -> None:
        rows = len(self.user_ids)
        if len(self.item_ids) != rows:
            raise ValueError(f"{rows} user ids but {len(self.item_ids)} item ids")
        for name, column in (("timestamps", self.timestamps), ("positive", self.positive)):
            if column is not None and len(column) != rows:
                raise ValueError(f"{rows} rows but {len(column)} {name}")
        if self.columns.width and self.columns.height != rows:
            raise ValueError(f"{rows} rows but {self.columns.height} rows of other columns")
        if rows:
            if int(self.user_ids.min()) < 1 or int(self.user_ids.max()) > self.num_users:
                raise ValueError(f"user ids must lie in 1..{self.num_users}")
            if int(self.item_ids.min()) < 0 or int(self.item_ids.max()) > self.num_items:
                raise ValueError(f"item ids must lie in 0..{self.num_items}")
            if bool((self.user_ids[1:] < self.user_ids[:-1]).any()):
                raise ValueError("interactions must be sorted by user")

    def __len__(self) -> int:
        return len(self.user_ids)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Offsets of each user's events, [U + 1] int64; user u has the rows offsets[u - 1]:offsets[u]."""
        counts = np.bincount(self.user_ids, minlength=self.num_users + 1)[1:]
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def __repr__(self) -> str:
        adjective = "undated" if self.timestamps is None else "dated"
        return f"Interactions({len(self):,} {adjective} events, {self.num_users:,} users, {self.num_items:,} items)"

    def select(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Interactions:
        """Return the rows `rows`, a mask [T] or ascending indices; order and numbers of users and items stay."""
        frame = self.columns
        if frame.width:
            frame = frame.filter(pl.Series(rows)) if rows.dtype == np.bool_ else frame[rows]
        return Interactions(
            self.user_ids[rows],
            self.item_ids[rows],
            self.num_users,
            self.num_items,
            timestamps=None if self.timestamps is None else self.timestamps[rows],
            positive=None if self.positive is None else self.positive[rows],
            columns=frame,
        )

    def targets_only(self) -> Interactions:
        """Return the events that may be targets: positive events with an item."""
        is_target = self.is_target()
        return self if bool(is_target.all()) else self.select(is_target)

    def item_counts(self) -> NDArray[np.int64]:
        """Return how often each item is a target, [N + 1] int64; entry 0 is 0."""
        counts = np.bincount(self.targets_only().item_ids, minlength=self.num_items + 1)
        counts[0] = 0
        return counts.astype(np.int64)

    def histories(self) -> Jagged:
        """Return the item ids of each user 1..U in order: U rows of int64 values, empty for a user without events."""
        import torch

        from nextitem.core.jagged import Jagged

        return Jagged(torch.from_numpy(self.item_ids.astype(np.int64)), torch.from_numpy(self.offsets))

    def is_target(self) -> NDArray[np.bool_]:
        """Return which events may be targets, [T] bool: positive events with an item."""
        has_item = self.item_ids > 0
        return has_item if self.positive is None else has_item & self.positive

    def with_items(self) -> Interactions:
        """Return the events that have an item."""
        has_item = self.item_ids > 0
        return self if bool(has_item.all()) else self.select(has_item)
