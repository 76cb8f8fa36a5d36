"""Several optimizers, each with its own parameters, behind the interface of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class ChainedOptimizer(torch.optim.Optimizer):
    """Optimizer that steps several optimizers one after the other.

    Its parameter groups are those of its parts, so that a learning-rate schedule changes all of them.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step every part; return the loss of `closure`, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each part."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        # Loading replaces the groups of a part by new objects.
        self.param_groups = [group for part in self.parts for group in part.param_groups]
