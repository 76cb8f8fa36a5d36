"""S-DPO: prefer the best list of a group to several worse ones at once.

Chen et al., On Softmax Direct Preference Optimization for Recommendation, arXiv 2406.09215, equation 10:
- log sigmoid(- log sum over l of exp(beta (log pi(l) / ref(l) - log pi(w) / ref(w)))), with w the best list and l the
worst ones. With one worse list it is DPO.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from nextitem.alignment.dpo import log_ratios, mean_of_live, pair_figures
from nextitem.alignment.method import Method, ScoredLists, best_and_worst
from nextitem.core.roles import LossTerms


class SDpo(Method):
    """Softmax direct preference optimisation: the best list against several."""

    kind: Literal["s-dpo"] = "s-dpo"
    """Name of the method."""
    weight: float = Field(5.0, gt=0)
    """Factor of the method's loss; with 1 / beta its gradients do not depend on beta at the start."""
    beta: float = Field(0.1, gt=0)
    """Strength with which the reference holds the policy."""
    num_worst: int = Field(3, ge=1)
    """Number of lists that the best one is preferred to: those with the lowest rewards."""

    def pick(self, rewards: Tensor, is_legal: Tensor) -> Tensor:
        """Return the best list of each group and the worst ones, worst first."""
        return best_and_worst(rewards, is_legal, num_worst=self.num_worst)

    def loss(self, lists: ScoredLists) -> LossTerms:
        """Return the mean over live groups; lists that are not legal are no part of the sum."""
        gain = log_ratios(lists, last_code_only=False)
        # A group with few legal lists has been filled up with illegal ones; the best list is not its own rival.
        is_rival = lists.rollouts.is_legal[:, 1:] & (lists.rewards[:, 1:] < lists.rewards[:, :1])
        is_rival = is_rival | ~lists.is_live[:, None]  # not read, but a sum over nothing has no gradient
        rivals = (self.beta * (gain[:, 1:] - gain[:, :1])).masked_fill(~is_rival, -torch.inf)
        losses = -F.logsigmoid(-torch.logsumexp(rivals, 1))
        return LossTerms(mean_of_live(losses, lists), pair_figures(gain, lists))
