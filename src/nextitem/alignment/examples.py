"""Examples of alignment: requests to generate lists for, each batch beside a batch of the policy's own examples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic

import numpy as np
import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.core.roles import BatchT, Examples
from nextitem.data.examples.event_requests import EventRequests


@dataclass(frozen=True)
class AlignmentBatch(Generic[BatchT]):
    """A batch of alignment.

    Attributes:
        requests: requests with the items that followed as targets.
        supervised: a batch of the policy's own examples; None if its own loss has no weight.

    """

    requests: SequenceBatch
    supervised: BatchT | None

    def to(self, device: torch.device | str) -> AlignmentBatch[BatchT]:
        """Return the batch on another device."""
        return AlignmentBatch(self.requests.to(device), None if self.supervised is None else self.supervised.to(device))

    def share(self, rank: int, count: int) -> AlignmentBatch[BatchT]:
        """Return the part of process `rank` of `count`."""
        supervised = None if self.supervised is None else self.supervised.share(rank, count)
        return AlignmentBatch(self.requests.share(rank, count), supervised)

    @property
    def loss_count(self) -> int:
        """Number of requests."""
        return self.requests.num_requests


class AlignmentExamples:
    """Stream of AlignmentBatch: an epoch is a number of steps, and the next one continues in the log.

    Requests are those of training events with at least one event before them. Users without such an event have none;
    `num_skipped_users` is their number.

    Args:
        train: training data.
        steps_per_epoch: number of batches of an epoch.
        history_length: number of most recent events of a history.
        supervised: the policy's own examples; None: none.
        supervised_batch_size: number of these in a batch.

    Raises:
        UserError: no event has an event before it.

    """

    def __init__(
        self,
        train: Dataset,
        *,
        steps_per_epoch: int,
        history_length: int,
        supervised: Examples[Any] | None,
        supervised_batch_size: int,
    ) -> None:
        self.requests = EventRequests(train, max_history_length=history_length)
        if not len(self.requests.places):
            raise UserError(f"{train.name}: no user has two training events, so there is no request to align with")
        users = np.unique(train.interactions.user_ids)
        self.num_skipped_users = len(users) - len(np.unique(train.interactions.user_ids[self.requests.places]))
        self.steps_per_epoch, self.excludes_seen = steps_per_epoch, not train.repeats
        self.supervised, self.supervised_batch_size = supervised, supervised_batch_size

    def num_batches(self, batch_size: int) -> int:
        """Return the number of batches in one epoch."""
        return self.steps_per_epoch

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[AlignmentBatch[Any]]:
        """Yield the batches `start`, `start + 1`, ... of an epoch."""
        first = epoch * self.steps_per_epoch + start
        requests = _passes(self.requests, batch_size, first, seed)
        supervised = None
        if self.supervised is not None:
            supervised = _passes(self.supervised, self.supervised_batch_size, first, seed + 1)
        for _ in range(start, self.steps_per_epoch):
            batch: SequenceBatch = next(requests)
            if self.excludes_seen:
                batch = replace(batch, excluded=batch.items)
            yield AlignmentBatch(batch, None if supervised is None else next(supervised))


def _passes(examples: Examples[BatchT], batch_size: int, first: int, seed: int) -> Iterator[BatchT]:
    """Yield the batches `first`, `first + 1`, ... of endless passes over examples."""
    epoch, start = divmod(first, examples.num_batches(batch_size))
    while True:
        yield from examples.batches(batch_size, epoch=epoch, seed=seed, start=start)
        epoch, start = epoch + 1, 0
