"""IPA: iterative preference alignment. DPO on the best and the worst list of a beam, beside the policy's own loss.

OneRec (arXiv 2502.18965, section 3.3): for 1% of the samples, N = 128 sessions are found by beam search, and those with
the highest and the lowest reward are a pair. The loss is that of next-token prediction plus lambda times DPO's. After
each epoch the reference becomes the current policy, so that each round starts from the last one.

Notable
- lambda is `weight`; the paper does not disclose it, nor beta. The loss of next-token prediction has the factor
  `alignment.sft_weight`. The share of samples with pairs follows from the batch sizes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from nextitem.alignment.dpo import dpo_loss
from nextitem.alignment.method import Method, ScoredLists, best_and_worst
from nextitem.core.roles import LossTerms


class Ipa(Method):
    """Iterative preference alignment: DPO whose reference is the policy after the last epoch."""

    kind: Literal["ipa"] = "ipa"
    """Name of the method."""
    weight: float = Field(10.0, gt=0)
    """Factor of the method's loss; with 1 / beta its gradients do not depend on beta at the start."""
    beta: float = Field(0.1, gt=0)
    """Strength with which the reference holds the policy."""
    refreshes_reference: ClassVar[bool] = True

    def pick(self, rewards: Tensor, is_legal: Tensor) -> Tensor:
        """Return the best and the worst list of each group."""
        return best_and_worst(rewards, is_legal)

    def loss(self, lists: ScoredLists) -> LossTerms:
        """Return the mean over live groups of the loss of their pair."""
        return dpo_loss(lists, beta=self.beta, last_code_only=False)
