"""GRPO: raise the probability of lists that are better than their group's mean, by a clipped ratio, near a reference.

Shao et al., DeepSeekMath, arXiv 2402.03300, equation 3, with the advantage (reward - mean) / deviation of the group:
- min(r A, clip(r, 1 - low, 1 + high) A) + kl_weight KL, with the ratio r = pi / pi_old and the estimator
ref / pi - log(ref / pi) - 1 of KL(pi, ref), all code by code. A larger upper bound is DAPO's (arXiv 2503.14476).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from nextitem.alignment.method import Level, Method, ScoredLists, advantages, at_level, mean_over_lists, share_of_lists
from nextitem.core.roles import LossTerms


class Grpo(Method):
    """Group relative policy optimisation."""

    kind: Literal["grpo"] = "grpo"
    """Name of the method."""
    weight: float = Field(3.0, gt=0)
    """Factor of the method's loss; its gradients are those of single codes, which are small."""
    clip_low: float = Field(0.2, ge=0, lt=1)
    """The ratio counts from 1 minus this on, if the list is worse than its group."""
    clip_high: float = Field(0.2, ge=0)
    """The ratio counts up to 1 plus this, if the list is better than its group."""
    kl_weight: float = Field(1e-3, ge=0)
    """Weight of the divergence from the reference."""
    level: Level = "code"
    """What has a ratio of its own: each code, or each item."""

    def loss(self, lists: ScoredLists) -> LossTerms:
        """Return the mean over the lists of live groups."""
        log_probs, old = (at_level(part, self.level) for part in (lists.log_probs, lists.rollouts.log_probs))
        advantage = advantages(lists.rewards, lists.rollouts.is_legal)[..., None, None]
        ratio = (log_probs - old).exp()
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        total = mean_over_lists(-torch.minimum(ratio * advantage, clipped * advantage), lists)
        if self.kl_weight:
            gap = lists.reference_log_probs - lists.log_probs
            total = total + self.kl_weight * mean_over_lists(gap.exp() - gap - 1, lists)
        is_clipped = (clipped * advantage < ratio * advantage).detach()
        return LossTerms(total, {"clip_rate": share_of_lists(is_clipped, lists)})
