"""TOP1: the positive above each negative, negatives near zero (arXiv 1511.06939, section 3.3)."""

from __future__ import annotations

from torch import Tensor


def top1(scores: Tensor) -> Tensor:
    """Mean over B of mean_j[s(score_j - positive) + s(score_j ** 2)] - s(positive ** 2) / M, scalar.

    `scores [B, M]`, M >= B: column b is the positive of row b, every other one a negative; the mean runs over all M
    columns, and the last term takes the positive's own square back. s is the logistic function.
    """
    positive = scores.diagonal()[:, None]
    terms = (scores - positive).sigmoid() + scores.square().sigmoid()
    return (terms.mean(1) - positive[:, 0].square().sigmoid() / scores.shape[1]).mean()
