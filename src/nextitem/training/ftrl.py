"""FTRL-Proximal, an optimizer for sparse linear models: weights without enough evidence are exactly zero."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from nextitem.training.parameter_optimizer import ParameterOptimizer

BETA = 1.0  # smooths the learning rate of a weight that has had few gradients


class FTRL(ParameterOptimizer):
    """FTRL-Proximal: each weight minimises the linearised loss so far plus l1 |w| + weight_decay w^2 / 2.

    McMahan et al., KDD 2013, algorithm 1, with alpha = lr: for a gradient g,
    sigma = (sqrt(n + g^2) - sqrt(n)) / lr; z += g - sigma w; n += g^2; then
    w = 0 if |z| <= l1, else (sign(z) l1 - z) / ((1 + sqrt(n)) / lr + weight_decay).
    Training starts from the current weights: the initial z is such that a step without a gradient does not change them.
    `lr` must stay constant, since the rates fall by themselves.
    """

    def __init__(self, params: Iterable[Any], *, lr: float, l1: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "l1": l1, "weight_decay": weight_decay})

    def _update(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        """Update one parameter and its state in place."""
        state, rate, l1, l2 = self.state[weight], group["lr"], group["l1"], group["weight_decay"]
        if not state:
            state["n"] = torch.zeros_like(weight)
            state["z"] = -weight * (BETA / rate + l2) - weight.sign() * l1
        n, z = state["n"], state["z"]
        former_root = n.sqrt()
        n.addcmul_(grad, grad)
        root = n.sqrt()
        z.add_(grad).addcmul_(root - former_root, weight, value=-1 / rate)
        # A weight is not zero if |z| > l1. Soft thresholding turns -0 and +0 into 0.
        weight.copy_(torch.nn.functional.softshrink(z, l1) / -((BETA + root) / rate + l2))
