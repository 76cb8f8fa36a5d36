"""TPMA-GRPO: each code has an advantage of its own, by how much it adds to the match with the items that followed.

OneSearch-V2 (arXiv 2603.24422, equations 12 to 18). The reward of a list's code l is its weight if some target has this
code at level l; more exactly, by how much the weighted match of the prefix grows, maximal over the targets. It is
normalised over the group, level by level. To that is added the normalised reward of the list. A gate g lowers the part
of codes below a wrong prefix: g_1 = 1, g_l = share of the earlier codes that match. Loss: - mean(g r A), with the ratio
r = pi / pi_old of the code, and no clipping.

Notable
- Matches are counted by level, not by prefix: a right code below a wrong one still has a reward, damped by the gate
  alone. That is the published way.
- The published weights 2, 2, 1, .., 1, 0 are for five codes; the last one is 0, as it numbers items of equal codes. For
  fewer codes they are cut to the front ones; `last_weight` is that of the last.
- In a list of several items, each item is matched with the same targets.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from nextitem.alignment.method import SAME, Method, ScoredLists, advantages, mean_over_lists
from nextitem.core.roles import LossTerms


class Tpma(Method):
    """Token-position marginal advantages."""

    kind: Literal["tpma"] = "tpma"
    """Name of the method."""
    weight: float = Field(5.0, gt=0)
    """Factor of the method's loss; its gradients are those of single codes, which are small."""
    reward_weight: float = Field(1.0, ge=0)
    """Weight of the reward of the whole list beside that of each code."""
    last_weight: float = Field(0.0, ge=0)
    """Weight of the last code, which in most identifiers only numbers items with the same other codes."""

    def loss(self, lists: ScoredLists) -> LossTerms:
        """Return the mean over the lists of live groups."""
        codes, legal = lists.rollouts.codes, lists.rollouts.is_legal
        targets = codes.new_empty((len(codes), 0, codes.shape[3])) if lists.target_codes is None else lists.target_codes
        gains, gates = marginal_gains(codes, targets, level_weights(codes.shape[3], last=self.last_weight))
        advantage = normalised(gains, legal) + self.reward_weight * advantages(lists.rewards, legal)[..., None, None]
        ratio = (lists.log_probs - lists.rollouts.log_probs).exp()
        total = mean_over_lists(-gates * ratio * advantage, lists)
        return LossTerms(total, {"gate": mean_over_lists(gates, lists)})


def level_weights(num_levels: int, *, last: float) -> Tensor:
    """Return the weights of the levels, [M]: 2 for the first two, then 1, and `last` for the last one."""
    weights = torch.ones(num_levels)
    weights[:2] = 2
    if num_levels > 1:
        weights[-1] = last
    return weights


def marginal_gains(codes: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each code adds to the weighted match, and the gate of each code; both [B, G, m, M].

    Args:
        codes: [B, G, m, M] of the lists.
        targets: [B, T, M] of the items that followed; -1: none.
        weights: [M] of the levels.

    """
    if not targets.shape[1]:
        gates = torch.zeros(codes.shape, device=codes.device)
        gates[..., 0] = 1
        return torch.zeros_like(gates), gates
    is_match = (codes[:, :, :, None] == targets[:, None, None]) & (targets >= 0)[:, None, None]
    matches = is_match.float()  # [B, G, m, T, M]
    weighted = (matches * weights.to(codes.device)).cumsum(4).amax(3)
    gains = weighted.diff(dim=3, prepend=torch.zeros_like(weighted[..., :1]))
    counts = matches.cumsum(4).amax(3)
    before = torch.arange(1, codes.shape[3], device=codes.device)
    gates = torch.cat([torch.ones_like(counts[..., :1]), (counts[..., :-1] / before).clamp(0, 1)], dim=3)
    return gains, gates


def normalised(values: Tensor, is_legal: Tensor) -> Tensor:
    """Return values [B, G, m, M] minus mean, over deviation, among the legal lists of a group, place by place."""
    weights = is_legal[..., None, None].to(values.dtype)
    count = weights.sum(1, keepdim=True).clamp(min=1)
    centred = (values - (values * weights).sum(1, keepdim=True) / count) * weights
    deviation = (centred.square().sum(1, keepdim=True) / count).sqrt()
    return centred / deviation.clamp(min=SAME)
