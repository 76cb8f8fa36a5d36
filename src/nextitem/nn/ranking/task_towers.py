"""Several tasks over one input: what they share, and what each has of its own.

shared-bottom: Caruana 1997. mmoe: Ma et al., KDD 2018, eq. 6-7. ple: Tang et al., RecSys 2020, eq. 2-6.

Shapes: P candidates, X input width, Y width of experts, T tasks, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor, nn

from nextitem.nn.ranking.mlp import Activation, mlp

Sharing = Literal["shared-bottom", "mmoe", "ple"]


class TaskTowers(nn.Module):
    """Shared layers, then for each task a tower that ends in a logit.

    `hidden` are the widths of the shared layers (of each expert); `tower` those of each task's own. `experts` counts
    mmoe's experts, and in ple those that the tasks share and those that each task has of its own; `levels` is the
    number of ple's extraction networks.
    """

    def __init__(
        self,
        width: int,
        *,
        tasks: int,
        hidden: tuple[int, ...],
        tower: tuple[int, ...] = (),
        sharing: Sharing = "shared-bottom",
        experts: int = 4,
        levels: int = 2,
        activation: Activation = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()

        def expert(inputs: int) -> nn.Module:
            return mlp(inputs, hidden, activation=activation, dropout=dropout)

        out = hidden[-1] if hidden else width
        self.shared: nn.Module
        if sharing == "shared-bottom":
            self.shared = _Bottom(expert(width), tasks)
        elif sharing == "mmoe":
            self.shared = _Mixture(width, [expert(width) for _ in range(experts)], tasks)
        else:
            self.shared = _Progressive(width, out, expert, tasks=tasks, experts=experts, levels=levels)
        self.towers = nn.ModuleList(mlp(out, tower, activation=activation, out=1) for _ in range(tasks))

    def forward(self, inputs_PX: Tensor) -> Tensor:
        """Logits [P, T]."""
        each = self.shared(inputs_PX)
        return torch.cat([tower(own) for tower, own in zip(self.towers, each, strict=True)], dim=1)


class _Bottom(nn.Module):
    def __init__(self, layers: nn.Module, tasks: int) -> None:
        super().__init__()
        self.layers = layers
        self.tasks = tasks

    def forward(self, inputs_PX: Tensor) -> list[Tensor]:
        """The same [P, Y] for each task."""
        return [self.layers(inputs_PX)] * self.tasks


class _Mixture(nn.Module):
    def __init__(self, width: int, experts: list[nn.Module], tasks: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.gates = nn.ModuleList(nn.Linear(width, len(experts), bias=False) for _ in range(tasks))

    def forward(self, inputs_PX: Tensor) -> list[Tensor]:
        """For each task its own mean of the experts, [P, Y]."""
        experts_PEY = torch.stack([expert(inputs_PX) for expert in self.experts], dim=1)
        return [mix(gate(inputs_PX), experts_PEY) for gate in self.gates]


class _Progressive(nn.Module):
    """Extraction networks one above the other; T inputs of the tasks and one of the shared part go up."""

    def __init__(
        self, width: int, out: int, expert: Callable[[int], nn.Module], *, tasks: int, experts: int, levels: int
    ) -> None:
        super().__init__()
        self.tasks = tasks
        self.levels = nn.ModuleList(
            _Extraction(out if level else width, expert, tasks, experts, last=level == levels - 1)
            for level in range(levels)
        )

    def forward(self, inputs_PX: Tensor) -> list[Tensor]:
        """For each task its own [P, Y]."""
        inputs = [inputs_PX] * (self.tasks + 1)
        for level in self.levels:
            inputs = level(inputs)
        return inputs


class _Extraction(nn.Module):
    """A task sees its own experts and the shared ones, the shared part sees all; the last network has none for it."""

    def __init__(self, width: int, expert: Callable[[int], nn.Module], tasks: int, experts: int, *, last: bool) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.ModuleList(expert(width) for _ in range(experts)) for _ in range(tasks + 1))
        seen = [2 * experts] * tasks + ([] if last else [(tasks + 1) * experts])
        self.gates = nn.ModuleList(nn.Linear(width, count, bias=False) for count in seen)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """T + 1 times [P, X] in; T + 1 times [P, Y] out, of the last network T times."""
        made = [
            torch.stack([expert(own) for expert in cast(nn.ModuleList, group)], dim=1)
            for group, own in zip(self.experts, inputs, strict=True)
        ]
        seen = [*(torch.cat([own, made[-1]], dim=1) for own in made[:-1]), torch.cat(made, dim=1)]
        return [mix(gate(own), experts) for gate, own, experts in zip(self.gates, inputs, seen, strict=False)]


def mix(gate_PE: Tensor, experts_PEY: Tensor) -> Tensor:
    """Mean of the experts by the softmax of the gate, [P, Y]."""
    return (gate_PE.softmax(1)[:, None] @ experts_PEY)[:, 0]
