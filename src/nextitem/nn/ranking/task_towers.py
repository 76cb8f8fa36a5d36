"""Multi-task layers: networks that several tasks share over one input, and a tower for each task.

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
    """Shared layers, followed by one tower for each task that returns a logit.

    Args:
        width: width of the inputs (X).
        tasks: number of tasks (T).
        hidden: widths of the shared layers, or of each expert.
        tower: widths of the hidden layers of each task's tower.
        sharing: how the tasks share layers.
        experts: number of experts of mmoe; in ple, number of shared experts, and of each task's own experts.
        levels: number of extraction networks of ple.
        activation: activation of all hidden layers.
        dropout: dropout rate of the shared layers.

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
        """Return the logits [P, T] of all tasks."""
        task_inputs = self.shared(inputs_PX)
        return torch.cat([tower(inputs) for tower, inputs in zip(self.towers, task_inputs, strict=True)], dim=1)


class _Bottom(nn.Module):
    def __init__(self, layers: nn.Module, tasks: int) -> None:
        super().__init__()
        self.layers = layers
        self.tasks = tasks

    def forward(self, inputs_PX: Tensor) -> list[Tensor]:
        """Return the same hidden states [P, Y] for each task."""
        return [self.layers(inputs_PX)] * self.tasks


class _Mixture(nn.Module):
    def __init__(self, width: int, experts: list[nn.Module], tasks: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.gates = nn.ModuleList(nn.Linear(width, len(experts), bias=False) for _ in range(tasks))

    def forward(self, inputs_PX: Tensor) -> list[Tensor]:
        """Return for each task its own weighted mean of the experts, [P, Y]."""
        experts_PEY = torch.stack([expert(inputs_PX) for expert in self.experts], dim=1)
        return [mix(gate(inputs_PX), experts_PEY) for gate in self.gates]


class _Progressive(nn.Module):
    """Stack of extraction networks (ple), which passes on T inputs of the tasks and one of the shared part."""

    def __init__(
        self, width: int, out: int, expert: Callable[[int], nn.Module], *, tasks: int, experts: int, levels: int
    ) -> None:
        super().__init__()
        self.tasks = tasks
        self.levels = nn.ModuleList(
            _Extraction(out if level else width, expert, tasks, experts, is_last=level == levels - 1)
            for level in range(levels)
        )

    def forward(self, inputs_PX: Tensor) -> list[Tensor]:
        """Return for each task its own hidden states [P, Y]."""
        inputs = [inputs_PX] * (self.tasks + 1)
        for level in self.levels:
            inputs = level(inputs)
        return inputs


class _Extraction(nn.Module):
    """Extraction network of ple.

    A task mixes its own experts and the shared ones; the shared part mixes all experts. The last network has no output
    for the shared part.
    """

    def __init__(
        self, width: int, expert: Callable[[int], nn.Module], tasks: int, experts: int, *, is_last: bool
    ) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.ModuleList(expert(width) for _ in range(experts)) for _ in range(tasks + 1))
        num_visible = [2 * experts] * tasks + ([] if is_last else [(tasks + 1) * experts])
        self.gates = nn.ModuleList(nn.Linear(width, count, bias=False) for count in num_visible)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """Return T + 1 outputs [P, Y] for T + 1 inputs [P, X]; the last network returns T."""
        outputs = [
            torch.stack([expert(hidden) for expert in cast(nn.ModuleList, group)], dim=1)
            for group, hidden in zip(self.experts, inputs, strict=True)
        ]
        shared = outputs[-1]
        visible = [*(torch.cat([task, shared], dim=1) for task in outputs[:-1]), torch.cat(outputs, dim=1)]
        return [mix(gate(hidden), experts) for gate, hidden, experts in zip(self.gates, inputs, visible, strict=False)]


def mix(gate_PE: Tensor, experts_PEY: Tensor) -> Tensor:
    """Return the mean of the experts, weighted by the softmax of the gate, [P, Y]."""
    return (gate_PE.softmax(1)[:, None] @ experts_PEY)[:, 0]
