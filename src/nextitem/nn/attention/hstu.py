"""HSTU layer: pointwise SiLU attention with a gate, over jagged sequences (arXiv 2402.17152, eq. 1 to 3).

Shapes: T tokens of all sequences, D width, H heads, P length of the longest sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.ops.hstu_attention import TIME_BUCKETS, Layout, hstu_attention


@dataclass(frozen=True, eq=False)
class Past:
    """Cached keys and values of tokens that were read before; new tokens follow at the end of each sequence.

    order    [all tokens] int64: indices that put the cached tokens followed by the new ones into sequence order
    cache    [cached tokens, 2 x layers, H, width of a head]: keys and values, layer by layer
    """

    order: Tensor
    cache: Tensor


class HSTULayer(nn.Module):
    """Causal HSTU layer with a residual connection.

    It computes x + W_o(dropout(U * LN(A V))), with U, V, Q, K = SiLU(W LN(x)) and A = SiLU(Q K + bias) / N.
    Neither LN has weights; W has no bias. There is no feed-forward: the gate U takes its place. N is
    `max_length`, not the true length. Each layer has its own position and time biases, shared by its heads.

    normed_residual: add the output to LN(x) instead of x, as in the block of SASRec's authors.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        head_width: int,
        max_length: int,
        dropout: float,
        normed_residual: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = head_width
        self.max_length = max_length
        self.rate = dropout
        self.normed_residual = normed_residual
        self.project = nn.Linear(width, 4 * heads * head_width, bias=False)
        self.output = nn.Linear(heads * head_width, width)
        self.position_weights = nn.Parameter(torch.empty(2 * max_length - 1))
        self.time_weights = nn.Parameter(torch.empty(TIME_BUCKETS))
        nn.init.normal_(self.project.weight, std=0.02)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        nn.init.normal_(self.position_weights, std=0.02)
        nn.init.normal_(self.time_weights, std=0.02)

    def forward(
        self, hidden_TD: Tensor, layout: Layout, past: Past | None = None, layer: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the new hidden states of tokens, and their keys and values for a cache.

        Args:
            hidden_TD: hidden states of the tokens; with `past`, of the new tokens only.
            layout: where the tokens are in their sequences.
            past: cached tokens of the same sequences, or None.
            layer: index of this layer in `past.cache`.

        Returns:
            Hidden states [T, D], keys and values [T, H, head width] of the tokens in `hidden_TD`.

        """
        normed = F.layer_norm(hidden_TD, hidden_TD.shape[-1:], eps=1e-6)
        gate, value, query, key = F.silu(self.project(normed)).chunk(4, dim=1)
        shape = (len(hidden_TD), self.heads, self.head_width)
        value, query, key = value.reshape(shape), query.reshape(shape), key.reshape(shape)
        all_keys, all_values = key, value
        if past is not None:
            all_keys = torch.cat([past.cache[:, 2 * layer], key])[past.order]
            all_values = torch.cat([past.cache[:, 2 * layer + 1], value])[past.order]
        mixed = hstu_attention(
            query,
            all_keys,
            all_values,
            layout,
            normaliser=float(self.max_length),
            position_weights=self.position_weights,
            time_weights=None if layout.query_times is None else self.time_weights,
        ).reshape(gate.shape)
        gated = gate * F.layer_norm(mixed, mixed.shape[-1:], eps=1e-6)
        residual = normed if self.normed_residual else hidden_TD
        return residual + self.output(F.dropout(gated, self.rate, self.training)), key, value
