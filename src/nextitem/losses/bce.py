"""Binary cross-entropy with sampled negatives, SASRec's published objective (arXiv 1808.09781, eq. 7)."""

from __future__ import annotations

import torch
from torch import Tensor


def bce(hidden: Tensor, table: Tensor, targets: Tensor, *, negatives: Tensor) -> Tensor:
    """Mean over T of -log s(positive) - sum over the negatives of log(1 - s(negative)), scalar.

    `hidden [T, D]`, `table [N + 1, D]`, `targets [T]`, `negatives [T, S]`; s is the logistic function.
    """
    positive = (hidden * table[targets]).sum(1)
    negative = torch.einsum("td,tsd->ts", hidden, table[negatives])
    softplus = torch.nn.functional.softplus
    return (softplus(-positive) + softplus(negative).sum(1)).mean()
