"""Muon, an optimizer for the matrices of layers: every update is made nearly orthogonal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from nextitem.training.parameter_optimizer import ParameterOptimizer

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the iteration; its singular values end within 0.7 and 1.2, not at 1

Scale = Literal["as-adamw", "as-published"]


class Muon(ParameterOptimizer):
    """Muon (Jordan et al., 2024) with Nesterov momentum and decoupled weight decay.

    For a gradient g: b <- momentum b + (1 - momentum) g; u = momentum b + (1 - momentum) g, or b without Nesterov; then
    w <- (1 - lr weight_decay) w - lr scale orthogonal(u). The scale of an m x n matrix is 0.2 sqrt(max(m, n))
    ("as-adamw", arXiv 2502.16982: updates as large as AdamW's), or sqrt(max(1, m / n)) ("as-published").

    It is `torch.optim.Muon`, but iterates in float32. In bfloat16, a CPU without instructions for it takes ten times as
    long for the matrices of a small transformer.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        iterations: int = 5,
        scale: Scale = "as-adamw",
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "iterations": iterations,
            "scale": scale,
        }
        super().__init__(params, defaults)

    def _update(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        """Update one matrix and its momentum in place."""
        state, momentum = self.state[weight], group["momentum"]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        average = state["momentum"].lerp_(grad, 1 - momentum)
        direction = grad.lerp(average, momentum) if group["nesterov"] else average
        update = orthogonalise(direction, iterations=group["iterations"])
        rows, columns = weight.shape
        scale = 0.2 * max(rows, columns) ** 0.5 if group["scale"] == "as-adamw" else max(1.0, rows / columns) ** 0.5
        weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"] * scale)


def orthogonalise(matrix: Tensor, *, iterations: int) -> Tensor:
    """Return a matrix with the same singular vectors, whose singular values are near 1 (Newton-Schulz iterations).

    With X of norm 1 at first: X <- a X + (b G + c G^2) X, G = X X^T. A matrix of zeros stays one.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix).float()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if is_tall else x).to(matrix.dtype)
