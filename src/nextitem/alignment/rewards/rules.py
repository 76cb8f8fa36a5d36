"""Business-rule reward: the share of a list that are items with a value of a column, such as category=Tents."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from nextitem.alignment.rewards.reward import Reward
from nextitem.core.batch import SequenceBatch


class RuleReward(Reward):
    """Share of a list's items that satisfy a condition; with a negative weight they are avoided.

    Args:
        allowed: bool [N + 1] or [1, N + 1], the items that satisfy the condition.
        condition: the condition in words, for messages.

    """

    def __init__(self, allowed: Tensor, *, condition: str) -> None:
        self.is_match, self.name = allowed.flatten().clone(), f"rule {condition}"
        self.is_match[0] = False

    def score(self, batch: SequenceBatch, item_ids: Tensor) -> Tensor:
        """Return the shares [B, G]."""
        return self.is_match[item_ids].sum(2) / (item_ids > 0).sum(2).clamp(min=1)

    def to(self, device: torch.device | str) -> Self:
        """Move the mask to a device."""
        self.is_match = self.is_match.to(device)
        return self
