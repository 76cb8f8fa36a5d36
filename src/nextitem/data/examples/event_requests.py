"""Event requests: every event that may be a target, asked for as it was at its time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.data.examples.length_pools import batches_by_length
from nextitem.data.requests import RequestBuilder, single_targets


class EventRequests:
    """Requests with the `max_history_length` events before a target, its time, and what is known of its user.

    The same that a split asks, so that training reads what serving will read (data/examples/next_target.py holds items
    alone). Batches hold histories of similar length; all is drawn from (seed, epoch).
    """

    def __init__(self, train: Dataset, *, max_history_length: int) -> None:
        log = train.interactions
        first = log.offsets[log.user_ids - 1]
        self.builder = RequestBuilder(train)
        self.places = np.flatnonzero(log.is_target() & (np.arange(len(log)) > first))
        self.starts = np.maximum(first[self.places], self.places - max_history_length)
        self.lengths = self.places - self.starts
        self.anonymous = train.anonymous

    def num_batches(self, batch_size: int) -> int:
        """Batches in one epoch."""
        return -(-len(self.places) // batch_size)

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[SequenceBatch]:
        """Batches `start`, ... of an epoch."""
        for rows in self.orders(batch_size, epoch=epoch, seed=seed, start=start):
            yield self.batch(rows)

    def orders(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[NDArray[np.int64]]:
        """Which targets meet in batches `start`, ... of an epoch."""
        return batches_by_length(self.lengths, batch_size, epoch=epoch, seed=seed, start=start)

    def batch(self, rows: NDArray[np.int64]) -> SequenceBatch:
        """The requests of these targets."""
        log, places = self.builder.log, self.places[rows]
        return self.builder.build(
            self.starts[rows],
            places,
            targets=single_targets(log, places),
            times=None if log.timestamps is None else log.timestamps[places],
            user_ids=None if self.anonymous else log.user_ids[places],
        )

    def sample(self, most: int) -> SequenceBatch:
        """At most so many requests, evenly out of the log: what vocabularies and quantiles are taken from."""
        return self.batch(np.linspace(0, len(self.places) - 1, min(most, len(self.places))).astype(np.int64))
