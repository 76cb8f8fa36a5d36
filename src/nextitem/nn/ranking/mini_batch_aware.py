"""Mini-batch-aware L2: rows of a table are pulled to zero only by the batches that look them up.

Zhou et al., Deep Interest Network, arXiv 1706.06978, eq. 4-7: w_j -= rate [g_j + lambda (alpha_mj / n_j) w_j], where
alpha_mj is 1 where batch m holds feature j, and n_j counts the examples that hold it. So the rarer a feature, the
stronger it is pulled, and no step touches the whole table. Here it is the term of the loss whose gradient that is.

Shapes: V rows of a table, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mini_batch_aware_l2(table_VD: Tensor, looked_up: Tensor, counts_V: Tensor) -> Tensor:
    """Half the sum of |w_j|^2 / n_j over the distinct rows `looked_up [any]` by the batch, scalar."""
    rows = torch.unique(looked_up)
    return (table_VD[rows].square().sum(1) / counts_V[rows].clamp(min=1)).sum() / 2
