"""BPR-max: rank the positive above the highest-scored negatives (arXiv 1706.03847, eq. 10)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def bpr_max(scores: Tensor, *, regularisation: float = 1.0, elu: float = 0.0) -> Tensor:
    """Return the BPR-max loss with a penalty of the scores of negatives, a mean over B, scalar.

    It is -log sum_j w_j sigmoid(positive - score_j) + regularisation * sum_j w_j score_j ** 2. w is the softmax over
    the negatives alone.

    Args:
        scores: [B, M], M >= B: column b is the positive of row b, and every other column is a negative of it.
        regularisation: weight of the second term.
        elu: if it is above 0, all scores first pass through ELU with this alpha.

    """
    if elu > 0:
        scores = F.elu(scores, alpha=elu)
    positive = scores.diagonal()[:, None]
    log_weights = negative_log_weights(scores)
    # The sum of products is computed in logs, so log(0) cannot occur even if the negatives are far above the positive.
    above = -(log_weights + F.logsigmoid(positive - scores)).logsumexp(1)
    penalty = (log_weights.exp() * scores.square()).sum(1)
    return (above + regularisation * penalty).mean()


def negative_log_weights(scores: Tensor) -> Tensor:
    """Return the log of the softmax over the negatives of each row, [B, M]; -inf in column b of row b, the positive."""
    is_positive = torch.eye(*scores.shape, dtype=torch.bool, device=scores.device)
    return scores.masked_fill(is_positive, -torch.inf).log_softmax(1)
