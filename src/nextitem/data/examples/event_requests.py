"""Event requests: one request per target event, with the history up to that event and its time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.core.jagged import Jagged, ranges
from nextitem.data.examples.length_pools import batches_by_length
from nextitem.data.requests import RequestBuilder, single_targets


class EventRequests:
    """Stream of requests with the `max_history_length` events before a target, its time, and the user's features.

    Requests have the same columns as those of a split, so that training reads what serving will read. (The examples of
    data/examples/next_target.py contain items alone.) A batch contains histories of similar length. All random choices
    depend on (seed, epoch) alone.

    With `num_targets` above 1, the events after the target follow it in the same row, up to that number or the end of
    the user's events; 0 stands for one that may not be a target.
    """

    def __init__(self, train: Dataset, *, max_history_length: int, num_targets: int = 1) -> None:
        log = train.interactions
        first = log.offsets[log.user_ids - 1]
        self.builder = RequestBuilder(train)
        self.places = np.flatnonzero(log.is_target() & (np.arange(len(log)) > first))
        self.starts = np.maximum(first[self.places], self.places - max_history_length)
        self.lengths = self.places - self.starts
        self.anonymous, self.num_targets = train.anonymous, num_targets

    def num_batches(self, batch_size: int) -> int:
        """Return the number of batches in one epoch."""
        return -(-len(self.places) // batch_size)

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[SequenceBatch]:
        """Yield the batches `start`, `start + 1`, ... of an epoch."""
        for rows in self.batch_rows(batch_size, epoch=epoch, seed=seed, start=start):
            yield self.batch(rows)

    def batch_rows(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[NDArray[np.int64]]:
        """Yield the indices of the targets in each of the batches `start`, `start + 1`, ... of an epoch, [B]."""
        return batches_by_length(self.lengths, batch_size, epoch=epoch, seed=seed, start=start)

    def batch(self, rows: NDArray[np.int64]) -> SequenceBatch:
        """Return the requests of the targets with these indices, [B]."""
        log, places = self.builder.log, self.places[rows]
        return self.builder.build(
            self.starts[rows],
            places,
            targets=single_targets(log, places) if self.num_targets == 1 else self._targets(places),
            times=None if log.timestamps is None else log.timestamps[places],
            user_ids=None if self.anonymous else log.user_ids[places],
        )

    def sample(self, max_count: int) -> SequenceBatch:
        """Return at most `max_count` requests, evenly spaced in the log, to compute vocabularies and quantiles from."""
        return self.batch(np.linspace(0, len(self.places) - 1, min(max_count, len(self.places))).astype(np.int64))

    def _targets(self, places: NDArray[np.int64]) -> Jagged:
        """Return the items of the events from these places on, 0 for events that may not be targets, B rows."""
        log = self.builder.log
        counts = np.minimum(log.offsets[log.user_ids[places]] - places, self.num_targets)
        rows = ranges(torch.from_numpy(places), torch.from_numpy(counts)).numpy()
        items = np.where(log.is_target()[rows], log.item_ids[rows], 0)
        return Jagged.from_lengths(torch.from_numpy(items.astype(np.int64)), torch.from_numpy(counts))
