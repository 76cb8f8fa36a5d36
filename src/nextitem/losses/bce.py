"""Binary cross-entropy with sampled negatives, SASRec's published objective (arXiv 1808.09781, eq. 7)."""

from __future__ import annotations

import torch
from torch import Tensor


def bce(hidden: Tensor, table: Tensor, targets: Tensor, *, negatives: Tensor) -> Tensor:
    """Return the mean over T of -log sigmoid(positive) - sum over negatives of log(1 - sigmoid(negative)), scalar.

    The score of an item is hidden . item.

    Args:
        hidden: hidden states [T, D].
        table: item vectors [N + 1, D].
        targets: positive item of each position [T].
        negatives: sampled items of each position [T, S].

    """
    positive = (hidden * table[targets]).sum(1)
    negative = torch.einsum("td,tsd->ts", hidden, table[negatives])
    softplus = torch.nn.functional.softplus
    return (softplus(-positive) + softplus(negative).sum(1)).mean()
