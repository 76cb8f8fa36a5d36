"""Causal self-attention blocks over right-padded sequences: causality alone keeps padding out of real positions.

With a cache, a block receives the positions that follow the cached ones. It returns for them what it would return
within the whole sequence.

Shapes: B sequences, L positions, D width, H heads, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.nn.attention.key_value_cache import KeyValueCache


def attend(query: Tensor, keys_values: Tensor, *, dropout: float, cache: KeyValueCache | None) -> Tensor:
    """Return causal attention: mix the values of each position, earlier ones and those in the cache, [B, L, D].

    `query [B, L, H, d]`, `keys_values [B, L, 2, H, d]`; `dropout` is the rate of attention weights that are dropped.
    """
    B, L, H, d = query.shape
    if cache is not None:
        keys_values = cache.append(keys_values)
    key, value = keys_values.permute(2, 0, 3, 1, 4)
    visible = None if cache is None else cache.visible
    mixed = F.scaled_dot_product_attention(
        query.transpose(1, 2), key, value, attn_mask=visible, dropout_p=dropout, is_causal=visible is None
    )
    return mixed.transpose(1, 2).reshape(B, L, H * d)


class SelfAttention(nn.Module):
    """Multi-head attention of each position to itself and earlier ones, with an output projection."""

    def __init__(self, width: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, hidden_BLD: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Return the attention output [B, L, D]."""
        B, L, D = hidden_BLD.shape
        projected = self.query_key_value(hidden_BLD).view(B, L, 3, self.heads, D // self.heads)
        rate = self.dropout if self.training else 0.0
        out: Tensor = self.output(attend(projected[:, :, 0], projected[:, :, 1:], dropout=rate, cache=cache))
        return out


class PublishedBlock(nn.Module):
    """Transformer block of SASRec's authors, which is neither pre-norm nor post-norm.

    q = LN(x); a = attention(query q, keys and values from the un-normalised x), without output projection;
    h = a + q; f = LN(h); out = f + W2 relu(W1 f). The residual comes from the normalised query.
    """

    def __init__(self, width: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.rate = dropout
        self.norm_query = nn.LayerNorm(width, eps=1e-8)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.norm_feed = nn.LayerNorm(width, eps=1e-8)
        self.feed = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width), nn.Dropout(dropout)
        )

    def forward(self, hidden_BLD: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Return the hidden states after the block, [B, L, D]."""
        B, L, D = hidden_BLD.shape
        normed = self.norm_query(hidden_BLD)
        query = self.query(normed).view(B, L, self.heads, D // self.heads)
        keys_values = self.key_value(hidden_BLD).view(B, L, 2, self.heads, D // self.heads)
        rate = self.rate if self.training else 0.0
        mid = self.norm_feed(attend(query, keys_values, dropout=rate, cache=cache) + normed)
        out: Tensor = mid + self.feed(mid)
        return out


class PreNormBlock(nn.Module):
    """Pre-norm block: x + attention(LN(x)); x + feed-forward(LN(x)), with GELU and a fourfold inner width."""

    def __init__(self, width: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads=heads, dropout=dropout)
        self.norm_feed = nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_BLD: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Return the hidden states after the block, [B, L, D]."""
        hidden_BLD = hidden_BLD + self.dropout(self.attention(self.norm_attention(hidden_BLD), cache))
        out: Tensor = hidden_BLD + self.dropout(self.feed(self.norm_feed(hidden_BLD)))
        return out


class LiGRBlock(nn.Module):
    """LiGR block of eSASRec (arXiv 2508.06450): pre-norm, gated residuals, SwiGLU feed-forward.

    It computes x + sigmoid(W x) * sublayer(LN(x)), for attention and for the feed-forward.
    """

    def __init__(self, width: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads=heads, dropout=dropout)
        self.gate_attention = nn.Linear(width, width)
        self.norm_feed = nn.LayerNorm(width)
        self.up = nn.Linear(width, 8 * width)
        self.down = nn.Linear(4 * width, width)
        self.gate_feed = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_BLD: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Return the hidden states after the block, [B, L, D]."""
        attended = self.dropout(self.attention(self.norm_attention(hidden_BLD), cache))
        hidden_BLD = hidden_BLD + torch.sigmoid(self.gate_attention(hidden_BLD)) * attended
        gate, linear = self.up(self.norm_feed(hidden_BLD)).chunk(2, dim=-1)
        transformed = self.dropout(self.down(self.dropout(F.silu(gate) * linear)))
        out: Tensor = hidden_BLD + torch.sigmoid(self.gate_feed(hidden_BLD)) * transformed
        return out


BLOCKS: dict[str, type[nn.Module]] = {"published": PublishedBlock, "pre-norm": PreNormBlock, "ligr": LiGRBlock}
