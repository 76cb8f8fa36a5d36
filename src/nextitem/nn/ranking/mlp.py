"""Stacks of linear layers with activations.

Shapes: P rows, X width.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from nextitem.nn.ranking.dice import Dice

Activation = Literal["relu", "prelu", "dice"]


def mlp(
    width: int,
    hidden: tuple[int, ...],
    *,
    activation: Activation = "relu",
    dropout: float = 0.0,
    out: int | None = None,
) -> nn.Sequential:
    """Linear layers of widths `hidden`, each with its activation (and dropout); then, where given, a linear one to
    `out`. Without layers it is the identity. [P, width] -> [P, last width].
    """
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), _activation(activation, size)]
        layers += [nn.Dropout(dropout)] if dropout else []
        width = size
    if out is not None:
        layers.append(nn.Linear(width, out))
    return nn.Sequential(*layers)


def _activation(name: Activation, width: int) -> nn.Module:
    if name == "dice":
        return Dice(width)
    return nn.PReLU(width) if name == "prelu" else nn.ReLU()
