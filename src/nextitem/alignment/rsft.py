"""Rejection-sampling fine-tuning: of the lists that a policy generates, learn the best as if customers had chosen them.

Llama 2 (Touvron et al., arXiv 2307.09288, section 3.2.3) for text; OneRec (arXiv 2506.13695) drops the worse half of
the sessions of its log instead. Loss: the mean of - log pi(code) over the codes of the best lists.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from nextitem.alignment.method import Method, ScoredLists, mean_over_lists
from nextitem.core.roles import LossTerms


class Rsft(Method):
    """Rejection-sampling fine-tuning."""

    kind: Literal["rsft"] = "rsft"
    """Name of the method."""
    num_best: int = Field(2, ge=1)
    """Number of lists of each group that are learned: those with the highest rewards."""

    def pick(self, rewards: Tensor, is_legal: Tensor) -> Tensor:
        """Return the legal lists with the highest rewards."""
        order = rewards.masked_fill(~is_legal, -float("inf")).argsort(dim=1, descending=True, stable=True)
        return order[:, : self.num_best]

    def loss(self, lists: ScoredLists) -> LossTerms:
        """Return the mean negative log-probability of the codes of the best lists."""
        return LossTerms(mean_over_lists(-lists.log_probs, lists))
