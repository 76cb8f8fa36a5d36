"""The in-batch softmax over columns of which several are the same item: each item is scored once.

Shapes: B rows, M columns, U different items, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextitem.losses.in_batch_softmax import softmax_of


def merged_softmax(
    hidden: Tensor, vectors: Tensor, biases: Tensor, place: Tensor, log_q: Tensor, *, collisions: bool
) -> Tensor:
    """`in_batch_softmax` of `hidden @ vectors[place].T + biases[place]`, scalar.

    `hidden [B, D]`; `vectors [U, D]`, `biases [U]`; `place [M]`, M >= B: the item of each column; `log_q [M]`. Columns
    of one item differ by log_q alone, so they compete as one with the sum of their 1 / q; an item without a column
    never competes. Without `collisions` the other columns of a row's own item do not compete with it.
    """
    rows = len(hidden)
    weights = torch.zeros_like(biases).index_add_(0, place, torch.exp(-log_q).to(biases.dtype)).log()
    scores = torch.addmm(biases + weights, hidden, vectors.T)
    own = place[:rows, None]
    # From the item's columns together to the one that is the row's positive: a constant.
    alone = -log_q[:rows] - weights[place[:rows]]
    if collisions:
        return softmax_of(scores, own) - alone.mean()
    return softmax_of(scores.scatter_add(1, own, alone[:, None].to(scores.dtype)), own)
