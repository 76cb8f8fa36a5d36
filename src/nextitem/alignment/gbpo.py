"""GBPO: a ratio without clipping whose gradient is bounded as that of binary cross-entropy is.

OneRec-V2 (arXiv 2508.20900, section 4.3): - A pi / pi_old', with pi_old' = max(pi_old, sg(pi)) for A >= 0 and
max(pi_old, 1 - sg(pi)) for A < 0. So the derivative by pi is at most 1 / pi for good lists, and 1 / (1 - pi) for bad
ones: what the policy hardly ever generates is not pushed down any further.

Notable
- Code by code, as the paper's analysis of gradients speaks of tokens: 1 - pi of a whole item is always about 1.
- The paper takes pi_old from the log of exposures; here it is that of the policy that generated the lists.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from nextitem.alignment.method import Method, ScoredLists, advantages, mean_over_lists, share_of_lists
from nextitem.core.roles import LossTerms


class Gbpo(Method):
    """Gradient-bounded policy optimisation."""

    kind: Literal["gbpo"] = "gbpo"
    """Name of the method."""
    weight: float = Field(5.0, gt=0)
    """Factor of the method's loss; its gradients are those of single codes, which are small."""

    def loss(self, lists: ScoredLists) -> LossTerms:
        """Return the mean over the lists of live groups."""
        advantage = advantages(lists.rewards, lists.rollouts.is_legal)[..., None, None]
        is_good = (advantage >= 0).expand_as(lists.log_probs)
        bound = bounds(lists.log_probs.detach(), is_good)
        ratio = (lists.log_probs - torch.maximum(bound, lists.rollouts.log_probs)).exp()
        total = mean_over_lists(-ratio * advantage, lists)
        is_bounded = bound > lists.rollouts.log_probs
        return LossTerms(total, {"bound_rate": share_of_lists(is_bounded, lists)})


def bounds(log_probs: Tensor, is_good: Tensor) -> Tensor:
    """Return log pi for good codes and log(1 - pi) for bad ones; a code with probability 1 has -inf there."""
    complement = torch.log(-torch.expm1(log_probs.clamp(max=0)))
    return torch.where(is_good, log_probs, complement)
