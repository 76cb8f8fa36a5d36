"""Depth networks: from the hidden state at a node to the hidden state at one of its children.

Shapes: R rows, D width, t states so far of a row (the last one is current), H hidden units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nextitem.nn.attention.transformer import PreNormBlock


class DepthMLP(nn.Module):
    """A residual network for each level; it reads the former state and the vector of the node, and keeps one state."""

    def __init__(self, width: int, *, levels: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.networks = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width))
            for _ in range(levels - 1)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(levels - 1))

    def start(self, hidden: Tensor) -> Tensor:
        """Return the states [R, 1, D] at the root, from the hidden states [R, D] of the history."""
        return hidden[:, None]

    def forward(self, states: Tensor, vectors: Tensor, *, level: int) -> Tensor:
        """Return the states [R, 1, D] at nodes of depth `level` (from 1), whose vectors are `vectors [R, D]`."""
        former = states[:, -1]
        deeper = self.networks[level - 1](torch.cat([former, vectors], dim=1))
        return self.norms[level - 1](former + deeper)[:, None]  # type: ignore[no-any-return]


class DepthTransformer(nn.Module):
    """A causal block over the state of the history and the nodes of the path; it keeps all of their vectors.

    A path is short, so each step reads it again.
    """

    def __init__(self, width: int, *, levels: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.positions = nn.Embedding(levels, width)
        self.block = PreNormBlock(width, heads=1, dropout=dropout)
        self.norm = nn.LayerNorm(width)

    def start(self, hidden: Tensor) -> Tensor:
        """Return the states [R, 2, D] at the root: the first input, and the output, which is the hidden state."""
        return torch.stack([hidden, hidden], dim=1)

    def forward(self, states: Tensor, vectors: Tensor, *, level: int) -> Tensor:
        """Return the inputs of the path and the output at nodes of depth `level` (from 1), [R, level + 2, D]."""
        inputs = torch.cat([states[:, :-1], vectors[:, None]], dim=1)
        output = self.norm(self.block(inputs + self.positions.weight[: level + 1])[:, -1:])
        return torch.cat([inputs, output], dim=1)


DEPTH_NETWORKS: dict[str, type[DepthMLP] | type[DepthTransformer]] = {
    "mlp": DepthMLP,
    "transformer": DepthTransformer,
}
