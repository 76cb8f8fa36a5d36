"""Item pairs: two items of successive events of a user."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nextitem.core.interactions import Interactions


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

    def num_batches(self, batch_size: int) -> int:
        """Return the number of batches in one epoch."""
        return -(-len(self.left) // batch_size)

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[ItemPairBatch]:
        """Yield the batches `start`, `start + 1`, ... of an epoch."""
        order = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(len(self.left)))
        for index in range(start, self.num_batches(batch_size)):
            rows = order[index * batch_size : (index + 1) * batch_size]
            yield ItemPairBatch(self.left[rows], self.right[rows])
