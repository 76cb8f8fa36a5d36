"""The layers of T5 (arXiv 1910.10683): root-mean-square norms, relative position buckets, no biases, no 1 / sqrt(d).

Shapes: B sequences, L or S positions, W beams, D width, H heads, E head width.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RelativePositionBias(nn.Module):
    """A bias by head and bucket of the distance between key and query; one is shared by all layers of a stack."""

    def __init__(self, heads: int, *, bidirectional: bool, buckets: int = 32, max_distance: int = 128) -> None:
        super().__init__()
        self.bidirectional = bidirectional
        self.buckets = buckets
        self.max_distance = max_distance
        self.weight = nn.Embedding(buckets, heads)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """[H, Q, K] for query positions [Q] and key positions [K]."""
        bias: Tensor = self.weight(self._bucket(keys[None, :] - queries[:, None]))
        return bias.permute(2, 0, 1)

    def _bucket(self, distance: Tensor) -> Tensor:
        """Half of the buckets are exact, the others grow with the logarithm of the distance up to max_distance."""
        buckets, base = self.buckets, torch.zeros_like(distance)
        if self.bidirectional:
            buckets //= 2
            base = (distance > 0) * buckets
            away = distance.abs()
        else:
            away = (-distance).clamp(min=0)
        exact = buckets // 2
        # float64 would put some distances into another bucket than the published tables.
        growth = torch.log(away.float().clamp(min=1) / exact) / math.log(self.max_distance / exact)
        large = (exact + (growth * (buckets - exact)).long()).clamp(max=buckets - 1)
        return base + torch.where(away < exact, away, large)


class Attention(nn.Module):
    """Multi-head attention without scale and biases; keys and values can be made once and used many times."""

    def __init__(self, width: int, *, heads: int, head_width: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.rate = dropout
        self.query = nn.Linear(width, heads * head_width, bias=False)
        self.key_value = nn.Linear(width, 2 * heads * head_width, bias=False)
        self.output = nn.Linear(heads * head_width, width, bias=False)

    def keys_values(self, source_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, L, E] of what is attended to."""
        B, L, _ = source_BLD.shape
        pair = self.key_value(source_BLD).view(B, L, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        # Laid out by head once: what reads them, several times where beams do, is twice as fast.
        key, value = pair.contiguous()
        return key, value

    def forward(self, target_BSD: Tensor, keys_values: tuple[Tensor, Tensor], bias: Tensor | None) -> Tensor:
        """[B, S, D]; `bias` [B or 1, H or 1, S, L] is added to the logits, -inf where attention is forbidden."""
        B, S, _ = target_BSD.shape
        query = self.query(target_BSD).view(B, S, self.heads, -1).transpose(1, 2)
        rate = self.rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, *keys_values, attn_mask=bias, dropout_p=rate, scale=1.0)
        out: Tensor = self.output(mixed.transpose(1, 2).reshape(B, S, -1))
        return out


class FeedForward(nn.Module):
    """Linear layers with ReLU between them: T5 has one hidden layer."""

    def __init__(self, width: int, *, inner: int, hidden_layers: int, dropout: float) -> None:
        super().__init__()
        sizes = [width, *[inner] * hidden_layers, width]
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(sizes))
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D]."""
        for layer in self.layers[:-1]:
            # In place: the widest tensor of the model is not made twice.
            hidden = self.dropout(layer(hidden).relu_())
        out: Tensor = self.layers[-1](hidden)
        return out


class EncoderLayer(nn.Module):
    """x + attention(norm x); x + feed-forward(norm x)."""

    def __init__(
        self, width: int, *, heads: int, head_width: int, inner: int, hidden_layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm_attention = nn.RMSNorm(width, eps=1e-6)
        self.attention = Attention(width, heads=heads, head_width=head_width, dropout=dropout)
        self.norm_feed = nn.RMSNorm(width, eps=1e-6)
        self.feed = FeedForward(width, inner=inner, hidden_layers=hidden_layers, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_BLD: Tensor, bias: Tensor) -> Tensor:
        """[B, L, D]."""
        normed = self.norm_attention(hidden_BLD)
        hidden_BLD = hidden_BLD + self.dropout(self.attention(normed, self.attention.keys_values(normed), bias))
        out: Tensor = hidden_BLD + self.dropout(self.feed(self.norm_feed(hidden_BLD)))
        return out


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoder, feed-forward; each on the normed input, added to it."""

    def __init__(
        self, width: int, *, heads: int, head_width: int, inner: int, hidden_layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm_attention = nn.RMSNorm(width, eps=1e-6)
        self.attention = Attention(width, heads=heads, head_width=head_width, dropout=dropout)
        self.norm_cross = nn.RMSNorm(width, eps=1e-6)
        self.cross = Attention(width, heads=heads, head_width=head_width, dropout=dropout)
        self.norm_feed = nn.RMSNorm(width, eps=1e-6)
        self.feed = FeedForward(width, inner=inner, hidden_layers=hidden_layers, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_BSD: Tensor, cross: tuple[Tensor, Tensor], *, bias: Tensor, cross_bias: Tensor) -> Tensor:
        """[B, S, D]; `cross` are the keys and values of the encoder's output."""
        normed = self.norm_attention(hidden_BSD)
        hidden_BSD = hidden_BSD + self.dropout(self.attention(normed, self.attention.keys_values(normed), bias))
        hidden_BSD = hidden_BSD + self.dropout(self.cross(self.norm_cross(hidden_BSD), cross, cross_bias))
        out: Tensor = hidden_BSD + self.dropout(self.feed(self.norm_feed(hidden_BSD)))
        return out

    def step(
        self,
        hidden_BWD: Tensor,
        cross: tuple[Tensor, Tensor],
        cache: Tensor | None,
        *,
        bias: Tensor,
        cross_bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One more position of each beam: [B, W, D] and the longer cache.

        `cache` [B, W, 2, t, H, E] holds keys and values of the beam's earlier positions; `bias` [H, t + 1].
        Attention to the encoder treats the W beams of a request as W positions: its keys are read once.
        """
        B, W, _ = hidden_BWD.shape
        normed = self.norm_attention(hidden_BWD)
        fresh = self.attention.key_value(normed).view(B, W, 2, 1, self.attention.heads, -1)
        cache = fresh if cache is None else torch.cat([cache, fresh], dim=3)
        query = self.attention.query(normed).view(B, W, 1, self.attention.heads, -1)
        # A handful of positions: elementwise products beat B x W x H tiny matrix products.
        logits = (query * cache[:, :, 0]).sum(-1) + bias.T
        mixed = (logits.softmax(2)[..., None] * cache[:, :, 1]).sum(2)
        hidden_BWD = hidden_BWD + self.attention.output(mixed.view(B, W, -1))
        hidden_BWD = hidden_BWD + self.cross(self.norm_cross(hidden_BWD), cross, cross_bias)
        return hidden_BWD + self.feed(self.norm_feed(hidden_BWD)), cache
