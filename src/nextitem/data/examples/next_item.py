"""Next-item sequences: the events of a user, in which each event predicts the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged, offsets_of, ranges
from nextitem.data.examples.length_pools import batch_seed, even_batches
from nextitem.data.requests import tensor


@dataclass(frozen=True, eq=False)
class NextItemBatch:
    """Next-item sequences of one batch.

    Attributes:
        items: inputs, Jagged int64: all events of a sequence but its last.
        targets: Jagged int64, same offsets: the event after each input; 0 if that event may not be a target.
        seed: seed of the random samples of this batch (negatives).
        timestamps: times of the inputs, Jagged int64, milliseconds, same offsets; None if the log is undated.
        next_timestamps: times of the targets, as `timestamps`.
        actions: action codes of the inputs (Catalog.events); None if the model reads none.

    """

    items: Jagged
    targets: Jagged
    seed: int
    timestamps: Jagged | None = None
    next_timestamps: Jagged | None = None
    actions: Jagged | None = None

    def to(self, device: torch.device | str) -> NextItemBatch:
        """Return the same batch on another device."""
        return self.map(lambda column: column.to(device))

    def share(self, rank: int, count: int) -> NextItemBatch:
        """Return this process's part of the batch: every `count`-th sequence from sequence `rank` on."""
        rows = torch.arange(rank, self.items.num_rows, count)
        return self.map(lambda column: column.select(rows))

    @property
    def loss_count(self) -> int:
        """Return the number of targets that are not 0, over which the loss is averaged."""
        return int((self.targets.values > 0).sum())

    def occurrences(self) -> Tensor:
        """Return the items of all events of the sequences: the inputs, and the last target of each sequence."""
        return torch.cat([self.items.values, self.targets.values[self.items.offsets[1:][self.items.lengths > 0] - 1]])

    def later_targets(self, lag: int) -> Tensor:
        """Return the event that comes `lag` events after each input, [T], a target of lag 1 being the next event.

        0: that event may not be a target, or lies beyond the sequence.
        """
        places = torch.arange(len(self.targets.values), device=self.targets.values.device) + lag - 1
        is_inside = places < self.targets.offsets[1:][self.targets.row_ids()]
        later = self.targets.values[places.clamp(max=max(0, len(places) - 1))]
        return torch.where(is_inside, later, 0)

    def targets_by_lag(self, weights: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Return the targets of each input that has a next event, [T, K], and their weights, [T, K].

        The weights are those of the next event, the one after it, and so on. An absent target has weight 0, and stands
        as item 1.
        """
        lags = [self.later_targets(lag) for lag in range(1, len(weights) + 1)]
        targets = torch.stack(lags, dim=1)[self.targets.values > 0]
        return targets.clamp(min=1), (targets > 0) * torch.tensor(weights, device=targets.device)

    def weighted_targets(self, weights: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the targets of lags 1, 2, ..., with a weight each: their inputs' positions, items, weights, [T] each.

        The weights are divided by the number of next events, so that further targets do not dilute them.
        """
        places, targets, shares = [], [], []
        for lag, weight in enumerate(weights, start=1):
            later = self.later_targets(lag)
            places.append((later > 0).nonzero()[:, 0])
            targets.append(later[places[-1]])
            shares.append(torch.full_like(places[-1], weight, dtype=torch.float32))
        return torch.cat(places), torch.cat(targets), torch.cat(shares) / max(1, len(places[0]))

    def map(self, change: Callable[[Jagged], Jagged]) -> NextItemBatch:
        """Return the batch with the same change applied to every column."""
        columns: dict[str, Any] = {
            entry.name: change(column)
            for entry in fields(self)
            if isinstance(column := getattr(self, entry.name), Jagged)
        }
        return replace(self, **columns)

    def contains(self, item_ids: Tensor) -> Tensor:
        """Return which items [B, S] are among the inputs and targets of their row's sequence, bool [B, S]."""
        count = self.items.num_rows  # item * count + row is a distinct number for each pair
        events = torch.cat([self.items.values, self.targets.values]) * count + self.items.row_ids().repeat(2)
        rows = torch.arange(count, device=item_ids.device)[:, None]
        return torch.isin(item_ids * count + rows, events)


class NextItemSequences:
    """Stream of sequences of at most `max_length` inputs; a longer history is cut into windows from its end.

    Events that may not be targets stay as inputs. Sequences without any target are left out. A batch contains sequences
    of similar length, so that little work is wasted on padding. All batches have about the same number of events, so
    that every event has the same weight in training; `batch_size` is the mean number of sequences. The composition and
    the order of batches are random, and depend on (seed, epoch) alone.
    """

    def __init__(self, log: Interactions, *, max_length: int, actions: NDArray[np.int64] | None = None) -> None:
        """Cut the log into windows; `actions [T]` are the action codes of its events, if the model reads actions."""
        with_item = log.with_items()
        self.items = torch.from_numpy(with_item.item_ids.astype(np.int64))
        self.targets = self.items * torch.from_numpy(with_item.is_target())
        self.timestamps = None if with_item.timestamps is None else torch.from_numpy(with_item.timestamps)
        self.actions = None if actions is None else tensor(actions[log.item_ids > 0])
        self.starts, self.lengths = windows(with_item.offsets, max_length)
        has_target = self._has_target()
        self.starts, self.lengths = self.starts[has_target], self.lengths[has_target]

    def num_batches(self, batch_size: int) -> int:
        """Return the number of batches in one epoch."""
        return -(-len(self.starts) // batch_size)

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[NextItemBatch]:
        """Yield the batches `start`, `start + 1`, ... of an epoch."""
        for place, rows in even_batches(self.lengths, batch_size, epoch=epoch, seed=seed, start=start):
            starts, lengths = torch.from_numpy(self.starts[rows]), torch.from_numpy(self.lengths[rows])
            inputs = ranges(starts, lengths)
            offsets = offsets_of(lengths)
            yield NextItemBatch(
                Jagged(self.items[inputs], offsets),
                Jagged(self.targets[inputs + 1], offsets),
                seed=batch_seed(seed, epoch, place),
                timestamps=None if self.timestamps is None else Jagged(self.timestamps[inputs], offsets),
                next_timestamps=None if self.timestamps is None else Jagged(self.timestamps[inputs + 1], offsets),
                actions=None if self.actions is None else Jagged(self.actions[inputs], offsets),
            )

    def _has_target(self) -> NDArray[np.bool_]:
        """Return which windows contain a target, bool [windows]."""
        if not len(self.starts):
            return np.zeros(0, np.bool_)
        num_targets = np.concatenate([[0], np.cumsum(self.targets.numpy() > 0)])
        has_target: NDArray[np.bool_] = num_targets[self.starts + self.lengths + 1] > num_targets[self.starts + 1]
        return has_target


def windows(offsets: NDArray[np.int64], max_length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first input and the number of inputs of every window, [windows] each.

    The target of the last input of a user's last window is the user's last event.
    """
    inputs = np.maximum(np.diff(offsets) - 1, 0)
    counts = -(-inputs // max_length)
    user = np.repeat(np.arange(len(inputs)), counts)
    from_end = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
    ends = inputs[user] - from_end * max_length
    begins = np.maximum(ends - max_length, 0)
    return (offsets[:-1][user] + begins).astype(np.int64), (ends - begins).astype(np.int64)
