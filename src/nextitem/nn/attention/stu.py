"""STU: the layer of HSTU as its authors run it in ranking (arXiv 2402.17152; their DLRM-v3).

Shapes: T tokens, D width, H heads, K width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.nn.attention.stream import Projection
from nextitem.ops.hstu_attention import SQRT_TIME_BUCKETS


class STULayer(nn.Module):
    """Layer with pointwise attention, a gate, and a residual connection.

    It computes x + W_o dropout([U, A V, U * norm(A V)]), with U, V, Q, K = SiLU(W LN(x) + b) and
    A = SiLU(Q K / sqrt(width of a head) + bias) / normaliser. Unlike in the layer of the paper's experiments
    (HSTULayer), LN has weights, W has a bias that starts at 0, inner products are scaled, and the output reads the
    gate and the mixture beside their product.

    Args:
        width: width of the tokens (D).
        heads: number of heads.
        head_width: width of queries, keys, values and gates of a head.
        max_length: largest number of tokens of a stream; it is also the normaliser, so that no score depends on the
            other requests of a batch.
        dropout: dropout rate of the output.
        has_time_bias: whether the attention depends on the time between tokens.
        norm: normalisation of the mixture: of all heads together, or of each head.
        window: largest number of tokens that one sees, the last ones; None: all.

    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        head_width: int,
        max_length: int,
        dropout: float,
        has_time_bias: bool = True,
        norm: str = "layer",
        window: int | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.head_width, self.rate, self.window = heads, head_width, dropout, window
        self.normaliser, self.scale = float(max_length), head_width**-0.5
        self.input_norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, 4 * heads * head_width)
        self.mixture_norm: nn.Module = (
            nn.LayerNorm(heads * head_width) if norm == "layer" else nn.GroupNorm(heads, heads * head_width)
        )
        self.output = nn.Linear(3 * heads * head_width, width)
        # The last entry in use is that of a candidate, which stands after the last token of a full stream.
        self.position_weights = nn.Parameter(torch.empty(2 * max_length + 1))
        self.time_weights = nn.Parameter(torch.empty(SQRT_TIME_BUCKETS)) if has_time_bias else None
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        nn.init.normal_(self.position_weights, std=0.02)
        if self.time_weights is not None:
            nn.init.normal_(self.time_weights, std=0.02)

    def project(self, hidden: Tensor, groups: Tensor | None = None) -> Projection:
        """Return gate, query, key and value of tokens with the hidden states [T, D]; groups are ignored."""
        gate, value, query, key = F.silu(self.projection(self.input_norm(hidden))).chunk(4, dim=1)
        shape = (len(hidden), self.heads, self.head_width)
        return Projection(gate, query.reshape(shape), key.reshape(shape), value.reshape(shape))

    def combine(self, hidden: Tensor, gate: Tensor, mixed: Tensor, groups: Tensor | None = None) -> Tensor:
        """Return the new hidden states [T, D]."""
        parts = torch.cat([gate, mixed, gate * self.mixture_norm(mixed)], 1)
        out: Tensor = hidden + self.output(F.dropout(parts, self.rate, self.training))
        return out
