"""ECPO: GRPO whose ratio is capped also for bad lists, so that no gradient explodes.

OneRec technical report (arXiv 2506.13695, section 4.2): pi_old is replaced by max(sg(pi) / (1 + epsilon + delta),
pi_old), so the ratio is never above 1 + epsilon + delta, and the gradient of log pi never above that times |A|. GRPO
does not clip a list with A < 0 from above: the more a policy has come to like it, the larger the gradient. For A > 0 it
is GRPO. There is no KL: the policy's own loss holds it.

Notable
- epsilon is not in the report; 0.2 is PPO's. A ratio belongs to an item, as in the report's equation, or to a code.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field

from nextitem.alignment.method import Level, Method, ScoredLists, advantages, at_level, mean_over_lists, share_of_lists
from nextitem.core.roles import LossTerms


class Ecpo(Method):
    """Early-clipped group relative policy optimisation."""

    kind: Literal["ecpo"] = "ecpo"
    """Name of the method."""
    epsilon: float = Field(0.2, gt=0, lt=1)
    """Ratios count from 1 minus this to 1 plus this."""
    delta: float = Field(0.1, gt=0)
    """The ratio of a list that is worse than its group is capped at 1 plus epsilon plus this."""
    level: Level = "item"
    """What has a ratio of its own: each item, or each code."""

    def loss(self, lists: ScoredLists) -> LossTerms:
        """Return the mean over the lists of live groups."""
        log_probs, old = (at_level(part, self.level) for part in (lists.log_probs, lists.rollouts.log_probs))
        advantage = advantages(lists.rewards, lists.rollouts.is_legal)[..., None, None]
        cap = log_probs.detach() - math.log1p(self.epsilon + self.delta)
        ratio = (log_probs - torch.maximum(cap, old)).exp()
        clipped = ratio.clamp(1 - self.epsilon, 1 + self.epsilon)
        total = mean_over_lists(-torch.minimum(ratio * advantage, clipped * advantage), lists)
        figures = {"clip_rate": clipped * advantage < ratio * advantage, "cap_rate": cap > old}
        return LossTerms(total, {name: share_of_lists(flags.detach(), lists) for name, flags in figures.items()})
