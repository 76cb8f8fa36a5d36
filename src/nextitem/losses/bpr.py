"""BPR: the positive's score above each negative's (arXiv 1205.2618; in batches, arXiv 1511.06939, section 3.3)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def bpr(scores: Tensor) -> Tensor:
    """Mean over B and the M columns of -log s(positive - score), scalar; s is the logistic function.

    `scores [B, M]`, M >= B: column b is the positive of row b (where it stands against itself: a constant), every
    other one a negative.
    """
    return -F.logsigmoid(scores.diagonal()[:, None] - scores).mean()
