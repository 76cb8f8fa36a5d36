"""TOP1-max: the positive above the highest negatives, those near zero (arXiv 1706.03847, eq. 8)."""

from __future__ import annotations

from torch import Tensor

from nextitem.losses.bpr_max import negative_log_weights


def top1_max(scores: Tensor) -> Tensor:
    """Mean over B of sum_j w_j [s(score_j - positive) + s(score_j ** 2)], scalar.

    `scores [B, M]`, M >= B: column b is the positive of row b, every other one a negative; w is the softmax over the
    negatives alone, s the logistic function.
    """
    terms = (scores - scores.diagonal()[:, None]).sigmoid() + scores.square().sigmoid()
    return (negative_log_weights(scores).exp() * terms).sum(1).mean()
