"""BPR-max: the positive above the highest negatives (arXiv 1706.03847, eq. 10)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def bpr_max(scores: Tensor, *, regularisation: float = 1.0, elu: float = 0.0) -> Tensor:
    """Mean over B of -log sum_j w_j s(positive - score_j) + regularisation * sum_j w_j score_j ** 2, scalar.

    `scores [B, M]`, M >= B: column b is the positive of row b, every other one a negative; w is the softmax over the
    negatives alone, s the logistic function. `elu` > 0 passes all scores through ELU with this alpha first.
    """
    if elu > 0:
        scores = F.elu(scores, alpha=elu)
    positive = scores.diagonal()[:, None]
    log_weights = negative_log_weights(scores)
    # A sum of products in logs: no log(0), however far above the positive the negatives lie.
    above = -(log_weights + F.logsigmoid(positive - scores)).logsumexp(1)
    penalty = (log_weights.exp() * scores.square()).sum(1)
    return (above + regularisation * penalty).mean()


def negative_log_weights(scores: Tensor) -> Tensor:
    """Log of the softmax over each row's negatives [B, M]; -inf in the positive's column b of row b."""
    own = torch.eye(*scores.shape, dtype=torch.bool, device=scores.device)
    return scores.masked_fill(own, -torch.inf).log_softmax(1)
