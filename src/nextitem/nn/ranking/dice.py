"""Dice: an activation whose transition point adapts to the distribution of its inputs.

Zhou et al., Deep Interest Network, arXiv 1706.06978, eq. 3.

Shapes: P candidates, X width.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dice(nn.Module):
    """Dice activation: p x + (1 - p) alpha x, where p is the logistic function of the standardised x.

    alpha is a parameter that starts at 0. In training, mean and variance are those of the batch. Otherwise they are the
    running ones of training, so the result of a row does not depend on the other rows. A training batch of one row has
    no variance and uses the running ones too.
    """

    synchronised: ClassVar = {"norm.running_mean": "mean", "norm.running_var": "mean"}

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, eps=1e-8, affine=False)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, inputs_PX: Tensor) -> Tensor:
        """Return the activations [P, X]."""
        norm = self.norm
        if self.training and len(inputs_PX) < 2:
            standard = F.batch_norm(inputs_PX, norm.running_mean, norm.running_var, eps=norm.eps)
        else:
            standard = norm(inputs_PX)
        gate = torch.sigmoid(standard)
        return inputs_PX * (gate + (1 - gate) * self.alpha)
