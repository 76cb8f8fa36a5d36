"""Query transformer: a fixed number of learned queries summarises a sequence of any length (Q-Former).

BLIP-2, arXiv 2301.12597; as in the OneRec technical report, arXiv 2506.13695, which has no attention among the queries:

    Q <- Q + cross_attention(norm(Q), X)
    Q <- Q + feed_forward(norm(Q))           in each block; X: the vectors of the sequence

Shapes: B sequences, L positions, Q queries, D width, H heads, E head width.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from nextitem.nn.attention.t5 import FeedForward, T5CrossAttention


class QueryBlock(nn.Module):
    """Attention of the queries to a sequence and a feed-forward network, each with a norm before and a residual."""

    def __init__(self, width: int, *, heads: int, head_width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.norm_cross, self.norm_feed = (nn.RMSNorm(width, eps=1e-6) for _ in range(2))
        self.cross = T5CrossAttention(width, heads=heads, head_width=head_width, dropout=0.0)
        self.feed = FeedForward(width, inner=inner, hidden_layers=1, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries_BQD: Tensor, sequence_BLD: Tensor, bias: Tensor) -> Tensor:
        """Return the queries after the block, [B, Q, D]; `bias [B, 1, 1, L]` is -inf at padding."""
        keys_values = self.cross.keys_values(sequence_BLD)
        queries_BQD = queries_BQD + self.dropout(self.cross(self.norm_cross(queries_BQD), keys_values, bias))
        out: Tensor = queries_BQD + self.dropout(self.feed(self.norm_feed(queries_BQD)))
        return out


class QueryTransformer(nn.Module):
    """Learned queries, blocks of attention to a sequence, and a final norm.

    Args:
        width: width of the vectors (D).
        queries: number of learned queries (Q).
        layers: number of blocks.
        heads: number of attention heads; must divide the width.
        inner: hidden units of the feed-forward networks.
        dropout: dropout rate.

    """

    def __init__(self, width: int, *, queries: int, layers: int, heads: int, inner: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width) * width**-0.5)
        sizes: dict[str, Any] = {"heads": heads, "head_width": width // heads, "inner": inner, "dropout": dropout}
        self.norm_input = nn.RMSNorm(width, eps=1e-6)
        self.blocks = nn.ModuleList(QueryBlock(width, **sizes) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)

    def forward(self, sequence_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the summaries [B, Q, D] of right-padded sequences of these lengths.

        Padding changes nothing. An empty sequence has zeros.
        """
        if not sequence_BLD.shape[1]:
            return sequence_BLD.new_zeros(len(lengths_B), *self.queries.shape)
        places = torch.arange(sequence_BLD.shape[1], device=sequence_BLD.device)
        is_empty = lengths_B == 0
        # A row of -inf alone would be NaN: an empty sequence attends to its padding, and its summary is dropped.
        is_read = (places < lengths_B[:, None]) | is_empty[:, None]
        bias = torch.zeros_like(is_read, dtype=sequence_BLD.dtype).masked_fill(~is_read, -torch.inf)[:, None, None]
        sequence_BLD, hidden_BQD = self.norm_input(sequence_BLD), self.queries.expand(len(lengths_B), -1, -1)
        for block in self.blocks:
            hidden_BQD = cast(QueryBlock, block)(hidden_BQD, sequence_BLD, bias)
        out: Tensor = self.norm(hidden_BQD)
        return out.masked_fill(is_empty[:, None, None], 0)
