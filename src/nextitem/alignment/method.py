"""Method: base class of all ways to learn from lists with rewards, with the advantages and ratios that they share.

A method is its settings and two functions. `pick` says which lists of a group it learns from, so that gradients are
computed for these only. `loss` is a function of the lists, their rewards, and their log-probabilities under three
policies: the current one, the one that generated them (old), and the one that alignment started from (reference).

Shapes: B requests, each a group of G lists; m items of a list, M codes of an item.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from nextitem.core.config import Choice
from nextitem.core.roles import LossTerms
from nextitem.core.rollouts import Rollouts

Level = Literal["code", "item"]
SAME = 1e-6  # rewards of a group that differ by less count as equal


@dataclass(frozen=True, eq=False)
class ScoredLists:
    """Lists that a method learns from.

    Attributes:
        rollouts: the lists; their log-probabilities are those of the policy that generated them (old).
        rewards: [B, G]; of no meaning for lists that are not legal.
        is_live: [B] bool, whether the group can teach something (`live_groups`), before any lists were picked.
        log_probs: [B, G, m, M] of the codes under the current policy, differentiable.
        reference_log_probs: [B, G, m, M] under the policy that alignment started from.
        target_codes: [B, T, M] codes of the items that followed in the log; -1: none. None: not known.

    """

    rollouts: Rollouts
    rewards: Tensor
    is_live: Tensor
    log_probs: Tensor
    reference_log_probs: Tensor
    target_codes: Tensor | None = None


class Method(Choice):
    """A way to learn from lists with rewards, with its settings."""

    weight: float = Field(1.0, gt=0)
    """Factor of the method's loss; that of the policy's own loss is sft_weight."""
    refreshes_reference: ClassVar[bool] = False  # whether the reference becomes the current policy after each epoch

    def pick(self, rewards: Tensor, is_legal: Tensor) -> Tensor | None:
        """Return the indices of the lists of each group to learn from, [B, G'] int64; None: all of them."""
        return None

    @abstractmethod
    def loss(self, lists: ScoredLists) -> LossTerms:
        """Return the loss; groups that cannot teach anything have no part in it."""


def live_groups(rewards: Tensor, is_legal: Tensor) -> Tensor:
    """Return which groups [B] have two or more legal lists with different rewards; `rewards` and `is_legal` [B, G]."""
    if not rewards.shape[1]:
        return torch.zeros(len(rewards), dtype=torch.bool, device=rewards.device)
    low = rewards.masked_fill(~is_legal, torch.inf).amin(1)
    high = rewards.masked_fill(~is_legal, -torch.inf).amax(1)
    return high - low > SAME


def advantages(rewards: Tensor, is_legal: Tensor) -> Tensor:
    """Return (reward - mean) / standard deviation within each group of legal lists, [B, G].

    0 for lists that are not legal, and in groups whose rewards are all equal: there is nothing to prefer.
    """
    count = is_legal.sum(1, keepdim=True).clamp(min=1)
    legal = rewards.masked_fill(~is_legal, 0)
    centred = (legal - legal.sum(1, keepdim=True) / count).masked_fill(~is_legal, 0)
    deviation = (centred.square().sum(1, keepdim=True) / count).sqrt()
    values = centred / deviation.clamp(min=SAME)
    return values.masked_fill(~live_groups(rewards, is_legal)[:, None], 0)


def at_level(log_probs: Tensor, level: Level) -> Tensor:
    """Return log-probabilities [B, G, m, M] of codes as they are, or summed to those of items, [B, G, m, 1]."""
    return log_probs if level == "code" else log_probs.sum(3, keepdim=True)


def of_lists(log_probs: Tensor) -> Tensor:
    """Return the log-probabilities of lists, [B, G], from those of their codes, [B, G, m, M]."""
    return log_probs.sum((2, 3))


def mean_over_lists(values: Tensor, lists: ScoredLists) -> Tensor:
    """Return the mean of values [B, G, m, M or 1]: over the places of a list, then over the lists of live groups.

    Lists that are not legal are left out. Without any list it is 0, with zero gradients.
    """
    rollouts = lists.rollouts
    weights = rollouts.is_item[..., None].expand_as(values).to(values.dtype)
    of_list = (values * weights).sum((2, 3)) / weights.sum((2, 3)).clamp(min=1)
    is_used = rollouts.is_legal & lists.is_live[:, None]
    return (of_list * is_used).sum() / is_used.sum().clamp(min=1)


def share_of_lists(flags: Tensor, lists: ScoredLists) -> Tensor:
    """Return the share of places [B, G, m, M or 1] with a flag, among those of `mean_over_lists`; for the log."""
    return mean_over_lists(flags.to(lists.log_probs.dtype), lists).detach()


def best_and_worst(rewards: Tensor, is_legal: Tensor, *, num_worst: int = 1) -> Tensor:
    """Return the index of the best list of each group, and those of the `num_worst` worst, worst first.

    [B, 1 + num_worst] int64. Equal rewards: the earlier list. If a group has fewer legal lists, the result contains
    some that are not legal or the best one again; such groups are left out or masked by the caller.
    """
    best = rewards.masked_fill(~is_legal, -torch.inf).argmax(1, keepdim=True)
    losers = rewards.masked_fill(~is_legal, torch.inf).scatter(1, best, torch.inf)
    return torch.cat([best, losers.argsort(dim=1, stable=True)[:, :num_worst]], dim=1)
