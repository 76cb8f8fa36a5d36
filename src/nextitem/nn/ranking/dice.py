"""Dice: an activation whose kink follows the data.

Zhou et al., Deep Interest Network, arXiv 1706.06978, eq. 3.

Shapes: P candidates, X width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dice(nn.Module):
    """p x + (1 - p) alpha x, where p is the logistic function of x, standardised; alpha is learnt, from 0.

    Mean and variance are those of the batch while training, and of the training so far afterwards: then a row's
    answer does not depend on the rows beside it. A training batch of one row has no variance, and takes the latter too.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, eps=1e-8, affine=False)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, inputs_PX: Tensor) -> Tensor:
        """[P, X]."""
        norm = self.norm
        if self.training and len(inputs_PX) < 2:
            standard = F.batch_norm(inputs_PX, norm.running_mean, norm.running_var, eps=norm.eps)
        else:
            standard = norm(inputs_PX)
        share = torch.sigmoid(standard)
        return inputs_PX * (share + (1 - share) * self.alpha)
