"""TOP1: rank the positive above each negative, with scores of negatives near zero (arXiv 1511.06939, section 3.3)."""

from __future__ import annotations

from torch import Tensor


def top1(scores: Tensor) -> Tensor:
    """Return the TOP1 loss, a mean over B, scalar.

    It is mean_j[s(score_j - positive) + s(score_j ** 2)] - s(positive ** 2) / M. s is the sigmoid function.
    `scores [B, M]`, M >= B: column b is the positive of row b, and every other column is a negative of it. The inner
    mean runs over all M columns; the last term removes the square of the positive from it.
    """
    positive = scores.diagonal()[:, None]
    terms = (scores - positive).sigmoid() + scores.square().sigmoid()
    return (terms.mean(1) - positive[:, 0].square().sigmoid() / scores.shape[1]).mean()
