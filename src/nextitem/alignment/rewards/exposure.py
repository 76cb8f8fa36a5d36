"""Under-exposure reward: the share of a list that are items which were hardly ever exposed."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from nextitem.alignment.rewards.reward import Reward
from nextitem.core.batch import SequenceBatch


class UnderExposure(Reward):
    """Share of a list's items that are under-exposed.

    Args:
        counts: [N + 1], how often each item was exposed, or occurs in training.
        share: the least exposed items, which together have this share of all exposures, are under-exposed.

    """

    name = "under-exposure"

    def __init__(self, counts: Tensor, *, share: float) -> None:
        order = counts[1:].double().argsort(stable=True)
        total = counts[1:].double()[order].cumsum(0)
        self.is_under = torch.zeros(len(counts), dtype=torch.bool)
        self.is_under[1 + order] = total <= share * total[-1].clamp(min=1)

    def score(self, batch: SequenceBatch, item_ids: Tensor) -> Tensor:
        """Return the shares [B, G]."""
        return (self.is_under[item_ids] & (item_ids > 0)).sum(2) / (item_ids > 0).sum(2).clamp(min=1)

    def to(self, device: torch.device | str) -> Self:
        """Move the counts to a device."""
        self.is_under = self.is_under.to(device)
        return self
