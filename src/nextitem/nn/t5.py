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


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself, without scale and biases."""

    def __init__(self, width: int, *, heads: int, head_width: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.rate = dropout
        self.query_key_value = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.output = nn.Linear(heads * head_width, width, bias=False)

    def project(self, hidden_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [B, H, L, E]; keys and values [2, B, H, L, E]."""
        B, L, _ = hidden_BLD.shape
        parts = self.query_key_value(hidden_BLD).view(B, L, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return parts[0], parts[1:]

    def forward(self, hidden_BLD: Tensor, bias: Tensor) -> Tensor:
        """[B, L, D]; `bias` [B or 1, H or 1, L, L] is added to the logits, -inf where attention is forbidden."""
        query, (key, value) = self.project(hidden_BLD)
        rate = self.rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=rate, scale=1.0)
        out: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return out


class CrossAttention(nn.Module):
    """Multi-head attention to another sequence, whose keys and values are made once and used many times."""

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
        key, value = self.key_value(source_BLD).view(B, L, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return key, value

    def project(self, target_BSD: Tensor) -> Tensor:
        """Queries [B, H, S, E]."""
        B, S, _ = target_BSD.shape
        query: Tensor = self.query(target_BSD).view(B, S, self.heads, -1).transpose(1, 2)
        return query

    def forward(self, target_BSD: Tensor, keys_values: tuple[Tensor, Tensor], bias: Tensor | None) -> Tensor:
        """[B, S, D]; `bias` [B or 1, H or 1, S or 1, L] is added to the logits, -inf where attention is forbidden."""
        query = self.project(target_BSD)
        rate = self.rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, *keys_values, attn_mask=bias, dropout_p=rate, scale=1.0)
        out: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return out


def mix(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """What `query [B, H, W, E]` attends to, [B W, H E]: for few queries plain products beat a fused kernel."""
    logits = query @ key.transpose(2, 3)
    if bias is not None:
        logits += bias
    mixed = logits.softmax(3) @ value
    return mixed.transpose(1, 2).flatten(2).flatten(0, 1)


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
        self.attention = SelfAttention(width, heads=heads, head_width=head_width, dropout=dropout)
        self.norm_feed = nn.RMSNorm(width, eps=1e-6)
        self.feed = FeedForward(width, inner=inner, hidden_layers=hidden_layers, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_BLD: Tensor, bias: Tensor) -> Tensor:
        """[B, L, D]."""
        hidden_BLD = hidden_BLD + self.dropout(self.attention(self.norm_attention(hidden_BLD), bias))
        out: Tensor = hidden_BLD + self.dropout(self.feed(self.norm_feed(hidden_BLD)))
        return out


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoder, feed-forward; each on the normed input, added to it."""

    def __init__(
        self, width: int, *, heads: int, head_width: int, inner: int, hidden_layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm_attention = nn.RMSNorm(width, eps=1e-6)
        self.attention = SelfAttention(width, heads=heads, head_width=head_width, dropout=dropout)
        self.norm_cross = nn.RMSNorm(width, eps=1e-6)
        self.cross = CrossAttention(width, heads=heads, head_width=head_width, dropout=dropout)
        self.norm_feed = nn.RMSNorm(width, eps=1e-6)
        self.feed = FeedForward(width, inner=inner, hidden_layers=hidden_layers, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, hidden_BSD: Tensor, cross: tuple[Tensor, Tensor], *, bias: Tensor, cross_bias: Tensor | None
    ) -> Tensor:
        """[B, S, D]; `cross` are the keys and values of the encoder's output."""
        hidden_BSD = hidden_BSD + self.dropout(self.attention(self.norm_attention(hidden_BSD), bias))
        hidden_BSD = hidden_BSD + self.dropout(self.cross(self.norm_cross(hidden_BSD), cross, cross_bias))
        out: Tensor = hidden_BSD + self.dropout(self.feed(self.norm_feed(hidden_BSD)))
        return out

    def step(
        self,
        hidden_BWD: Tensor,
        cross: tuple[Tensor, Tensor],
        earlier: Tensor | None,
        *,
        bias: Tensor,
        cross_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """One more position of each of W beams: [B, W, D], and the keys and values of all positions so far.

        `earlier` [2, B, H, n, E] holds keys and values of every position that any beam of the request has ever
        stood at, and W more come to it: `bias` [B, H, W, n + W] is -inf but at a beam's own path. So nothing is
        copied when beams are reordered, and W beams read the keys of a request, the encoder's too, as W queries.
        """
        B, W, D = hidden_BWD.shape
        query, keys_values = self.attention.project(self.norm_attention(hidden_BWD))
        if earlier is not None:
            keys_values = torch.cat([earlier, keys_values], dim=3)
        # Each sum with what came before is part of the product that ends its branch.
        hidden = hidden_BWD.flatten(0, 1)
        hidden = torch.addmm(hidden, mix(query, keys_values[0], keys_values[1], bias), self.attention.output.weight.T)
        query = self.cross.project(self.norm_cross(hidden).view(B, W, D))
        mixed = F.scaled_dot_product_attention(query, *cross, attn_mask=cross_bias, scale=1.0)
        hidden = torch.addmm(hidden, mixed.transpose(1, 2).reshape(B * W, -1), self.cross.output.weight.T)
        return (hidden + self.feed(self.norm_feed(hidden))).view(B, W, D), keys_values
