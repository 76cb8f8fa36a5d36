"""Path decoder: a transformer decoder that goes down the codes of one item, for many items of a request at once.

A position is [BOS] or the vector of the last node. It attends to the positions before it on its own path, then to the
encoded history, then passes a feed-forward block. Training and search call the same `step`: the targets of a request
are its beams. Keys and values of a path are part of a beam, and those of the history are shared by all beams.

Shapes: B requests, W paths of a request, L positions of the history, t positions of a path so far, D width, H heads,
E head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.nn.attention.t5 import DecoderLayer
from nextitem.nn.byte_dropout import use_byte_dropout
from nextitem.nn.experts import Experts, ExpertsConfig


class PathDecoder(nn.Module):
    """Blocks of T5's decoder without position biases, a vector for each position of a path, and a final norm.

    Attention weights are not dropped: no other dropout costs as much.
    """

    def __init__(
        self,
        width: int,
        *,
        layers: int,
        levels: int,
        heads: int,
        inner: int,
        dropout: float,
        experts: ExpertsConfig | None = None,
    ) -> None:
        """Build the blocks; `experts` are the settings of a mixture in place of each feed-forward network."""
        super().__init__()
        sizes: dict[str, Any] = {"heads": heads, "head_width": width // heads, "inner": inner, "hidden_layers": 1}
        self.layers = nn.ModuleList(
            DecoderLayer(width, **sizes, dropout=dropout, attention_dropout=0.0) for _ in range(layers)
        )
        if experts is not None:
            for layer in self.layers:
                layer.feed = Experts(experts, width, hidden=inner, activation="swiglu", dropout=dropout)
        self.positions = nn.Parameter(torch.zeros(levels, width))  # row 0: [BOS]
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        use_byte_dropout(self)

    def shared(self, encoded_BLD: Tensor) -> dict[str, Tensor]:
        """Return keys and values of the encoded history, each [B, H, L, E], of each layer."""
        tensors = {}
        for number, layer in enumerate(self.layers):
            cross = cast(DecoderLayer, layer).cross
            tensors[f"key_{number}"], tensors[f"value_{number}"] = cross.keys_values(encoded_BLD)
        return tensors

    def step(
        self, inputs_BWD: Tensor, shared: Mapping[str, Tensor], paths: Mapping[str, Tensor], *, level: int, bias: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Append one position to each path.

        Args:
            inputs_BWD: vectors of the new positions; those of [BOS] are zeros.
            shared: keys and values of the history.
            paths: keys and values of the earlier positions, `own_<layer>` [B, W, t, 2, H, E]; empty at level 0.
            level: number of earlier positions (t).
            bias: [B, 1, 1, L], -inf at padding of the history.

        Returns:
            The normalised hidden states [B, W, D], and the keys and values of all positions of the paths.

        """
        B, W, D = inputs_BWD.shape
        hidden_BWD, own = self.dropout(inputs_BWD + self.positions[level]), {}
        for number, module in enumerate(self.layers):
            layer, name = cast(DecoderLayer, module), f"own_{number}"
            query, keys_values = layer.attention.project(layer.norm_attention(hidden_BWD).view(B * W, 1, D))
            new = keys_values.permute(1, 3, 0, 2, 4).unflatten(0, (B, W))
            own[name] = torch.cat([paths[name], new], dim=2) if name in paths else new
            key, value = own[name].flatten(0, 1).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(query, key, value, scale=1.0)
            hidden_BWD = hidden_BWD + layer.dropout(layer.attention.output(mixed.reshape(B, W, -1)))
            cross = (shared[f"key_{number}"], shared[f"value_{number}"])
            hidden_BWD = hidden_BWD + layer.dropout(layer.cross(layer.norm_cross(hidden_BWD), cross, bias))
            hidden_BWD = hidden_BWD + layer.dropout(layer.feed(layer.norm_feed(hidden_BWD)))
        return self.norm(hidden_BWD), own
