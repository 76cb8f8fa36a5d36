"""Item pairs: two items of successive events of a user, or other items that belong together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nextitem.core.interactions import Interactions

_CHUNK = 2**16  # events that are compared at a time


@dataclass(frozen=True, eq=False)
class ItemPairBatch:
    """Item pairs of one batch: `left [B]` and `right [B]`, numbers of the earlier and the later item."""

    left: Tensor
    right: Tensor

    def to(self, device: torch.device | str) -> ItemPairBatch:
        """Return the same batch on another device."""
        return ItemPairBatch(self.left.to(device), self.right.to(device))

    def share(self, rank: int, count: int) -> ItemPairBatch:
        """Return this process's part of the batch: every `count`-th pair from pair `rank` on."""
        return ItemPairBatch(self.left[rank::count], self.right[rank::count])

    @property
    def loss_count(self) -> int:
        """Return the number of pairs, over which the loss is averaged."""
        return len(self.left)


class ItemPairs:
    """Stream of every event of a user with the event before it, once an epoch.

    The order depends on seed and epoch alone. Events that may not be targets, and steps from an item to itself, are
    left out.
    """

    def __init__(self, log: Interactions) -> None:
        target_events = log.targets_only()
        is_same_user = target_events.user_ids[1:] == target_events.user_ids[:-1]
        steps = np.flatnonzero(is_same_user & (target_events.item_ids[1:] != target_events.item_ids[:-1]))
        items = torch.from_numpy(target_events.item_ids.astype(np.int64))
        self.left, self.right = items[steps], items[steps + 1]

    @classmethod
    def of(cls, left: Tensor, right: Tensor) -> ItemPairs:
        """Return the stream of these pairs of items, [n] int64 each."""
        pairs = cls.__new__(cls)
        pairs.left, pairs.right = left, right
        return pairs

    def num_batches(self, batch_size: int) -> int:
        """Return the number of batches in one epoch."""
        return -(-len(self.left) // batch_size)

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[ItemPairBatch]:
        """Yield the batches `start`, `start + 1`, ... of an epoch."""
        order = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(len(self.left)))
        for index in range(start, self.num_batches(batch_size)):
            rows = order[index * batch_size : (index + 1) * batch_size]
            yield ItemPairBatch(self.left[rows], self.right[rows])


def similar_recent_pairs(log: Interactions, vectors: Tensor, *, recent: int) -> tuple[Tensor, Tensor]:
    """Return each item that a user takes, and the most similar of the items that the user took shortly before.

    Args:
        log: the events; those that may not be targets do not count.
        vectors: vectors of the items [N + 1, D], compared by cosines.
        recent: number of events before each event that are compared with it.

    Returns:
        Earlier items and later items, [n] int64 each. Of equally similar items, the latest one. Events without an
        earlier one of another item have no pair.

    """
    events = log.targets_only()
    items, users = torch.from_numpy(events.item_ids.astype(np.int64)), torch.from_numpy(events.user_ids)
    unit = torch.nn.functional.normalize(vectors, dim=1)
    best = torch.full((len(items),), -torch.inf)
    partners = torch.zeros_like(items)
    for lag in range(1, min(recent, len(items) - 1) + 1):
        for rows in torch.arange(lag, len(items)).split(_CHUNK):
            cosines = (unit[items[rows]] * unit[items[rows - lag]]).sum(1)
            is_pair = (users[rows] == users[rows - lag]) & (items[rows] != items[rows - lag])
            is_better = is_pair & (cosines > best[rows])
            best[rows] = torch.where(is_better, cosines, best[rows])
            partners[rows] = torch.where(is_better, items[rows - lag], partners[rows])
    has_partner = partners > 0
    return partners[has_partner], items[has_partner]
