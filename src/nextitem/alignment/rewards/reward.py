"""Reward: base class of whatever judges lists of items, and the weighted sum of several.

Shapes: B requests, G lists of a request, m items of a list.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.errors import UserError


class Reward(ABC):
    """Judge of lists of items."""

    name: str
    """Name in the log and in messages."""

    @abstractmethod
    def score(self, batch: SequenceBatch, item_ids: Tensor) -> Tensor:
        """Return the reward of the lists `item_ids [B, G, m]` (0: padding, at the tail), float32 [B, G].

        The reward of an empty list has no meaning, but is finite.
        """

    def to(self, device: torch.device | str) -> Self:
        """Move what the reward reads to a device, and return the reward."""
        return self


class RewardSum(Reward):
    """Sum of several rewards with weights."""

    def __init__(self, parts: Sequence[tuple[Reward, float]]) -> None:
        self.parts, self.name = tuple(parts), " + ".join(part.name for part, _ in parts)

    def score(self, batch: SequenceBatch, item_ids: Tensor) -> Tensor:
        """Return the weighted sum [B, G]. Raises UserError if a part is not finite."""
        return torch.stack([weight * checked(part, batch, item_ids) for part, weight in self.parts]).sum(0)

    def to(self, device: torch.device | str) -> Self:
        """Move all parts to a device."""
        for part, _ in self.parts:
            part.to(device)
        return self


@torch.no_grad()
def checked(reward: Reward, batch: SequenceBatch, item_ids: Tensor) -> Tensor:
    """Return the reward of lists [B, G]; raise UserError if that of a list with an item is not finite."""
    values = reward.score(batch, item_ids).float()
    is_list = item_ids[..., 0] > 0
    is_wrong = ~values.isfinite() & is_list
    if bool(is_wrong.any()):
        value = float(values[is_wrong][0])
        raise UserError(
            f"the reward {reward.name} is {value} for {int(is_wrong.sum())} of {int(is_list.sum())} lists; a reward "
            "must be a finite number: train its model again with a lower learning rate, or use another one"
        )
    return values.masked_fill(~is_list, 0)
