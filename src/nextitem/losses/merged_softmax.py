"""In-batch softmax for columns that repeat items: each distinct item is scored once.

Shapes: B rows, M columns, U distinct items, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextitem.losses.in_batch_softmax import softmax_of


def merged_softmax(
    hidden: Tensor, vectors: Tensor, biases: Tensor, column_items: Tensor, log_q: Tensor, *, collisions: bool
) -> Tensor:
    """Return `in_batch_softmax` of `hidden @ vectors[column_items].T + biases[column_items]`, scalar.

    Columns of the same item differ in log_q only, so they compete as one column with the sum of their 1 / q.

    Args:
        hidden: hidden states of the rows [B, D].
        vectors: vectors of the distinct items [U, D]. An item without a column never competes.
        biases: biases of the distinct items [U].
        column_items: item of each column [M], M >= B, a row of `vectors`; column b is the positive of row b.
        log_q: log of the sampling probability of each column [M].
        collisions: whether other columns of the positive item of a row compete with it.

    """
    num_rows = len(hidden)
    weights = torch.zeros_like(biases).index_add_(0, column_items, torch.exp(-log_q).to(biases.dtype)).log()
    scores = torch.addmm(biases + weights, hidden, vectors.T)
    positives = column_items[:num_rows, None]
    # From the logit of all columns of the item to that of the one column that is the positive: a constant.
    corrections = -log_q[:num_rows] - weights[column_items[:num_rows]]
    if collisions:
        return softmax_of(scores, positives) - corrections.mean()
    return softmax_of(scores.scatter_add(1, positives, corrections[:, None].to(scores.dtype)), positives)
