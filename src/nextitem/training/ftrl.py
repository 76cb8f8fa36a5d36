"""FTRL-Proximal: for sparse linear models, whose weights shall be exactly zero where nothing speaks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

BETA = 1.0  # smooths the rate of a weight that has seen little


class FTRL(torch.optim.Optimizer):
    """Each weight minimises what its gradients say so far, plus l1 |w| + weight_decay w^2 / 2.

    McMahan et al., KDD 2013, algorithm 1, with alpha = lr: for a gradient g,
    sigma = (sqrt(n + g^2) - sqrt(n)) / lr; z += g - sigma w; n += g^2; then
    w = 0 where |z| <= l1, else (sign(z) l1 - z) / ((1 + sqrt(n)) / lr + weight_decay).
    Weights begin where they stand: z is chosen so that a step without a gradient leaves them there. `lr` is to stay
    the same throughout, since rates fall by themselves.
    """

    def __init__(self, params: Iterable[Any], *, lr: float, l1: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "l1": l1, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, rate, l1, l2 = self.state[weight], group["lr"], group["l1"], group["weight_decay"]
        if not state:
            state["n"] = torch.zeros_like(weight)
            state["z"] = -weight * (BETA / rate + l2) - weight.sign() * l1
        n, z = state["n"], state["z"]
        before = n.sqrt()
        n.addcmul_(grad, grad)
        after = n.sqrt()
        z.add_(grad).addcmul_(after - before, weight, value=-1 / rate)
        # Beyond l1 of zero, z speaks for a weight; soft thresholding leaves -0 and +0 as 0.
        weight.copy_(torch.nn.functional.softshrink(z, l1) / -((BETA + after) / rate + l2))
