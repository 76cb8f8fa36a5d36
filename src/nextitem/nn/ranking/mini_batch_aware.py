"""Mini-batch-aware L2 regularisation: a batch pulls only those rows of a table to zero that it looks up.

Zhou et al., Deep Interest Network, arXiv 1706.06978, eq. 4-7: w_j -= rate [g_j + lambda (alpha_mj / n_j) w_j], where
alpha_mj is 1 if batch m contains feature j, else 0, and n_j is the number of examples that contain it. So the rarer a
feature, the stronger its regularisation, and no step touches the whole table. This module returns the term of the loss
that has this gradient.

Shapes: V rows of a table, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def mini_batch_aware_l2(table: Callable[[Tensor], Tensor], looked_up: Tensor, counts_V: Tensor) -> Tensor:
    """Return half the sum of |w_j|^2 / n_j over the distinct rows that a batch looks up, scalar.

    Args:
        table: function that returns the rows of indices [n, D], such as an embedding.
        looked_up: indices of the rows that the batch looks up, in any shape; repeated ones count once.
        counts_V: number of examples that contain each row (n_j).

    """
    rows = torch.unique(looked_up)
    return (table(rows).square().sum(1) / counts_V[rows].clamp(min=1)).sum() / 2
