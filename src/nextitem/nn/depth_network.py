"""Depth networks: from the hidden state at a node to the hidden state at one of its children.

Shapes: R rows, D width, t states so far of a row (the last one is current), H states and V vectors that rows share.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.nn.attention.transformer import PreNormBlock
from nextitem.nn.byte_dropout import ByteDropout


class DepthMLP(nn.Module):
    """A residual network for each level; it reads the former state and the vector of the node, and keeps one state."""

    def __init__(self, width: int, *, levels: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.networks = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width, hidden), nn.GELU(), ByteDropout(dropout), nn.Linear(hidden, width))
            for _ in range(levels - 1)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(levels - 1))

    def start(self, hidden: Tensor) -> Tensor:
        """Return the states [R, 1, D] at the root, from the hidden states [R, D] of the history."""
        return hidden[:, None]

    def forward(
        self, states: Tensor, vectors: Tensor, *, level: int, rows: Tensor | None = None, nodes: Tensor | None = None
    ) -> Tensor:
        """Return the states [R, 1, D] at nodes of depth `level` (from 1).

        Args:
            states: former states [R, 1, D]; [H, 1, D] with `rows`.
            vectors: vectors of the nodes [R, D]; [V, D] with `nodes`.
            level: depth of the nodes.
            rows: [R] int64, the former state of each row; None: row r has state r.
            nodes: [R] int64, the vector of each row; None: row r has vector r.

        """
        former = states[:, -1]
        network = cast(nn.Sequential, self.networks[level - 1])
        first = cast(nn.Linear, network[0])
        # A product for each state and each vector, however many rows read them.
        of_states, of_nodes = first.weight.split(former.shape[1], dim=1)
        deeper = _select(F.linear(former, of_states, first.bias), rows)
        deeper = deeper + _select(F.linear(vectors, of_nodes), nodes)
        return self.norms[level - 1](_select(former, rows) + network[1:](deeper))[:, None]  # type: ignore[no-any-return]


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

    def forward(
        self, states: Tensor, vectors: Tensor, *, level: int, rows: Tensor | None = None, nodes: Tensor | None = None
    ) -> Tensor:
        """Return the inputs of the path and the output at nodes of depth `level` (from 1), [R, level + 2, D].

        The arguments are those of DepthMLP; states are [R, level + 1, D].
        """
        inputs = torch.cat([_select(states, rows)[:, :-1], _select(vectors, nodes)[:, None]], dim=1)
        output = self.norm(self.block(inputs + self.positions.weight[: level + 1])[:, -1:])
        return torch.cat([inputs, output], dim=1)


def _select(values: Tensor, rows: Tensor | None) -> Tensor:
    """Return the rows of `values`, or all of them."""
    return values if rows is None else values.index_select(0, rows)


DEPTH_NETWORKS: dict[str, type[DepthMLP] | type[DepthTransformer]] = {
    "mlp": DepthMLP,
    "transformer": DepthTransformer,
}
