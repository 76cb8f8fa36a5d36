"""Adam for tables of which each step reads few rows: the others, and their moments, stay unchanged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from nextitem.training.parameter_optimizer import ParameterOptimizer

EPSILON = 1e-8


class RowAdam(ParameterOptimizer):
    """Adam (arXiv 1412.6980) for sparse gradients, with a step count of its own for each row.

    A row that every step reads changes as in torch's Adam or AdamW. torch's SparseAdam corrects the bias of all rows by
    the number of steps of the table, so the first step of a late row is too short by orders of magnitude; here it has
    the length of the learning rate. Weight decay, decoupled or not, acts on the rows that a step reads.

    Args:
        params: tables with sparse gradients, or groups of them.
        lr: learning rate.
        betas: decay rates of the first and the second moment.
        weight_decay: weight decay.
        is_decoupled: whether weight decay is that of AdamW (arXiv 1711.05101), instead of a part of the gradient.

    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        is_decoupled: bool = True,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "is_decoupled": is_decoupled}
        super().__init__(params, defaults)

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        """Update the rows of one table that have a gradient, and their state, in place."""
        state, rate, (beta1, beta2) = self.state[parameter], group["lr"], group["betas"]
        if not state:
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["steps"] = torch.zeros(len(parameter), device=parameter.device)
        grad = grad.coalesce()
        rows, values = grad.indices()[0], grad.values()
        vectors = parameter[rows]
        if group["weight_decay"] and group["is_decoupled"]:
            vectors = vectors * (1 - rate * group["weight_decay"])
        elif group["weight_decay"]:
            values = values + group["weight_decay"] * vectors
        steps = (state["steps"][rows] + 1)[:, None]
        mean = state["mean"][rows].lerp_(values, 1 - beta1)
        square = (state["square"][rows] * beta2).addcmul_(values, values, value=1 - beta2)
        size = (square / (1 - beta2**steps)).sqrt_().add_(EPSILON)
        parameter[rows] = vectors - rate / (1 - beta1**steps) * mean / size
        state["steps"][rows], state["mean"][rows], state["square"][rows] = steps[:, 0], mean, square
