"""Pairs of items that users took one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nextitem.core.interactions import Interactions


@dataclass(frozen=True, eq=False)
class ItemPairBatch:
    """B pairs: `left [B]` and `right [B]`, item numbers."""

    left: Tensor
    right: Tensor

    def to(self, device: torch.device | str) -> ItemPairBatch:
        """The same on another device."""
        return ItemPairBatch(self.left.to(device), self.right.to(device))

    def share(self, rank: int, count: int) -> ItemPairBatch:
        """Every `count`-th pair from `rank` on."""
        return ItemPairBatch(self.left[rank::count], self.right[rank::count])

    @property
    def loss_count(self) -> int:
        """Pairs."""
        return len(self.left)


class ItemPairs:
    """Every event of a user with the one before it, once an epoch, in an order that follows from seed and epoch.

    Events that may not be targets, and steps from an item to itself, are left out.
    """

    def __init__(self, log: Interactions) -> None:
        kept = log.targets_only()
        same_user = kept.user_ids[1:] == kept.user_ids[:-1]
        steps = np.flatnonzero(same_user & (kept.item_ids[1:] != kept.item_ids[:-1]))
        items = torch.from_numpy(kept.item_ids.astype(np.int64))
        self.left, self.right = items[steps], items[steps + 1]

    def num_batches(self, batch_size: int) -> int:
        """Batches in one epoch."""
        return -(-len(self.left) // batch_size)

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[ItemPairBatch]:
        """Batches `start`, ... of an epoch."""
        order = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(len(self.left)))
        for index in range(start, self.num_batches(batch_size)):
            rows = order[index * batch_size : (index + 1) * batch_size]
            yield ItemPairBatch(self.left[rows], self.right[rows])
