"""BPR: rank the positive above each negative (arXiv 1205.2618; within batches, arXiv 1511.06939, section 3.3)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def bpr(scores: Tensor) -> Tensor:
    """Return the mean over B rows and M columns of -log sigmoid(positive - score), scalar.

    `scores [B, M]`, M >= B: column b is the positive of row b, and every other column is a negative of it. The term of
    the positive itself is a constant.
    """
    return -F.logsigmoid(scores.diagonal()[:, None] - scores).mean()
