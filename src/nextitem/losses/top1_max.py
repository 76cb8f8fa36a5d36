"""TOP1-max: rank the positive above the highest-scored negatives, with their scores near zero (1706.03847, eq. 8)."""

from __future__ import annotations

from torch import Tensor

from nextitem.losses.bpr_max import negative_log_weights


def top1_max(scores: Tensor) -> Tensor:
    """Return the TOP1-max loss, a mean over B, scalar.

    It is sum_j w_j [s(score_j - positive) + s(score_j ** 2)]. w is the softmax over the negatives alone, s the
    sigmoid function. `scores [B, M]`, M >= B: column b is the positive of row b, and every other column is a negative
    of it.
    """
    terms = (scores - scores.diagonal()[:, None]).sigmoid() + scores.square().sigmoid()
    return (negative_log_weights(scores).exp() * terms).sum(1).mean()
