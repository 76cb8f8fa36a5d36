"""Next targets: a history, and the item that followed it, or the first few."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged, ranges
from nextitem.data.examples.length_pools import batches_by_length
from nextitem.data.examples.objectives import OBJECTIVE
from nextitem.data.requests import context_of


class NextTargets:
    """Stream of every event that may be a target, with the `max_length` events before it, as a SequenceBatch.

    All prefixes of a user's history are examples, not only the longest. A batch contains histories of similar length,
    so that little work is wasted on padding. An epoch passes over `per_epoch` targets sampled without replacement
    (None: all); shorter epochs change only how often a model is validated. All random choices depend on (seed, epoch)
    alone.

    With `num_targets` above 1, the events after the target follow it in the same row, up to that number or the end of
    the user's events; 0 stands for one that may not be a target.

    With `in_order` nothing is random: targets stream by time and user. If the log is undated, they stream by their
    place in the history and user.

    With `objectives` an event is an example of each objective that it fulfils. The context of an example contains the
    number of its objective, and of the events after its target those that fulfil it, too, are targets.
    """

    def __init__(
        self,
        log: Interactions,
        *,
        max_length: int,
        num_targets: int = 1,
        per_epoch: int | None = None,
        in_order: bool = False,
        user_keys: NDArray[np.int64] | None = None,
        user_context: Mapping[str, Tensor | Jagged] | None = None,
        objectives: NDArray[np.bool_] | None = None,
    ) -> None:
        """Collect the targets of a log.

        Args:
            log: the events.
            max_length: number of events before the target that are read.
            num_targets: largest number of targets of an example.
            per_epoch: number of examples of an epoch; None: all.
            in_order: whether examples stream by time.
            user_keys: stable keys of the users, [U + 1], if a model reads them.
            user_context: features of the users, U + 1 rows each (data.requests.user_context), if a model reads them.
            objectives: which events are examples of each objective, bool [T, J]; None: there are no objectives.

        """
        with_item = log.with_items()
        self.items = torch.from_numpy(with_item.item_ids.astype(np.int64))
        first = with_item.offsets[with_item.user_ids - 1]
        before = np.arange(len(with_item)) - first
        is_target = with_item.is_target()
        self.is_target = torch.from_numpy(is_target)
        self.places = np.flatnonzero(is_target & (before > 0))  # rows of the targets in the log
        self.objectives: NDArray[np.int64] | None = None  # of the examples
        if objectives is not None:
            of_events = objectives[log.item_ids > 0] & is_target[:, None]
            self.fulfils = torch.from_numpy(of_events)
            self.places, self.objectives = np.nonzero(of_events & (before > 0)[:, None])
        self.in_order = in_order
        if in_order:
            moments = before if with_item.timestamps is None else with_item.timestamps
            order = np.argsort(moments[self.places], kind="stable")  # the log is sorted by user
            self.places = self.places[order]
            self.objectives = None if self.objectives is None else self.objectives[order]
        self.lengths = np.minimum(before[self.places], max_length)
        users = with_item.user_ids[self.places]
        self.target_counts = np.minimum(with_item.offsets[users] - self.places, num_targets)
        self.users = None if user_keys is None else user_keys[users]
        self.user_numbers, self.user_context = torch.from_numpy(users.astype(np.int64)), user_context
        self.per_epoch = len(self.places) if per_epoch is None else min(per_epoch, len(self.places))

    def num_batches(self, batch_size: int) -> int:
        """Return the number of batches in one epoch."""
        return -(-self.per_epoch // batch_size)

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[SequenceBatch]:
        """Yield the batches `start`, `start + 1`, ... of an epoch."""
        if self.in_order:
            for number in range(start, self.num_batches(batch_size)):
                yield self._batch(np.arange(number * batch_size, min((number + 1) * batch_size, self.per_epoch)))
            return
        # Among histories of equal length, batches contain similar numbers of targets.
        sizes = self.lengths * (self.target_counts.max(initial=0) + 1) + self.target_counts
        for rows in batches_by_length(sizes, batch_size, epoch=epoch, seed=seed, start=start, count=self.per_epoch):
            yield self._batch(rows)

    def item_capped_batches(self, max_per_item: int, *, batch_size: int, seed: int) -> Iterator[SequenceBatch]:
        """Yield batches with at most `max_per_item` targets of each item, sampled by seed, sorted by history length."""
        order = np.random.default_rng(seed).permutation(len(self.places))
        items = self.items.numpy()[self.places[order]]
        by_item = np.argsort(items, kind="stable")
        first = np.searchsorted(items[by_item], items[by_item])
        rows = order[by_item[np.arange(len(order)) - first < max_per_item]]
        rows = rows[np.argsort(self.lengths[rows], kind="stable")]
        for start in range(0, len(rows), batch_size):
            yield self._batch(rows[start : start + batch_size])

    def _batch(self, rows: np.ndarray) -> SequenceBatch:
        """Return the examples of the targets with these indices, [B]."""
        places, lengths = torch.from_numpy(self.places[rows]), torch.from_numpy(self.lengths[rows])
        counts = torch.from_numpy(self.target_counts[rows])
        targets = ranges(places, counts)
        is_target = self.is_target[targets]
        context: dict[str, Any] = {}
        if self.user_context is not None:
            context |= context_of(self.user_context, self.user_numbers[rows])
        if self.objectives is not None:
            context[OBJECTIVE] = torch.from_numpy(self.objectives[rows])
            is_target = self.fulfils[targets, context[OBJECTIVE].repeat_interleave(counts)]
        return SequenceBatch(
            Jagged.from_lengths(self.items[ranges(places - lengths, lengths)], lengths),
            user_ids=None if self.users is None else torch.from_numpy(self.users[rows]),
            context=context,
            targets=Jagged.from_lengths(self.items[targets] * is_target, counts),
        )
