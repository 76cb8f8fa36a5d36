"""Adagrad with momentum, as used by GRU4Rec's authors; rows of a table that a step does not read stay unchanged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from nextitem.training.parameter_optimizer import ParameterOptimizer

EPSILON = 1e-6  # added within the square root


class Adagrad(ParameterOptimizer):
    """Adagrad with momentum, for dense and sparse gradients.

    For a gradient g: acc += g ** 2 (from 0); m = momentum * m - lr * g / sqrt(acc + 1e-6); p += m.

    A sparse gradient (`nn.Embedding(sparse=True)`) updates only the rows that it contains, their sums and their
    momentum. torch's own Adagrad has no momentum and another epsilon. Weight decay is added to dense gradients only.
    """

    def __init__(self, params: Iterable[Any], *, lr: float, momentum: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        """Update one parameter and its state in place."""
        state, rate, momentum = self.state[parameter], group["lr"], group["momentum"]
        if not state:
            state["sum"] = torch.zeros_like(parameter)
            if momentum > 0:
                state["momentum"] = torch.zeros_like(parameter)
        if not grad.is_sparse:
            if group["weight_decay"]:
                grad = grad.add(parameter, alpha=group["weight_decay"])
            state["sum"].addcmul_(grad, grad)
            change = grad.mul(-rate).div_(state["sum"].add(EPSILON).sqrt_())
            if momentum > 0:
                change = state["momentum"].mul_(momentum).add_(change)
            parameter.add_(change)
            return
        rows, values = grad._indices()[0], grad._values()
        if not bool((rows[1:] > rows[:-1]).all()):  # else the rows are sorted and distinct already
            grad = grad.coalesce()
            rows, values = grad.indices()[0], grad.values()
        state["sum"].index_add_(0, rows, values.square())
        change = state["sum"].index_select(0, rows).add_(EPSILON).rsqrt_().mul_(values).mul_(-rate)
        if momentum > 0:
            change = change.add_(state["momentum"].index_select(0, rows), alpha=momentum)
            state["momentum"].index_copy_(0, rows, change)
        parameter.index_add_(0, rows, change)
