"""Multi-layer perceptrons: stacks of linear layers with activations.

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
    """Return a multi-layer perceptron that maps [P, width] to [P, last width].

    Without any layers it is the identity.

    Args:
        width: width of the inputs.
        hidden: widths of the hidden layers, each followed by its activation and dropout.
        activation: activation of the hidden layers.
        dropout: dropout rate after each hidden layer; 0 for no dropout layers.
        out: width of a final linear layer without activation, or None for no such layer.

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
