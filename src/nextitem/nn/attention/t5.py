"""Layers of T5 (arXiv 1910.10683): root-mean-square norms, relative position buckets, no biases, no 1 / sqrt(d).

Shapes: B sequences, L or S positions, W beams, D width, H heads, E head width.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RelativePositionBias(nn.Module):
    """Attention bias by head and bucket of the distance between key and query; all layers of a stack share one."""

    bucket_of: Tensor

    def __init__(self, heads: int, *, bidirectional: bool, buckets: int = 32, max_distance: int = 128) -> None:
        super().__init__()
        self.max_distance = max_distance
        self.weight = nn.Embedding(buckets, heads)
        distances = torch.arange(-max_distance, max_distance + 1)
        self.register_buffer(
            "bucket_of", _buckets(distances, buckets, max_distance, bidirectional=bidirectional), persistent=False
        )

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return the biases [H, Q, K] for query positions [Q] and key positions [K]."""
        distance = (keys[None, :] - queries[:, None]).clamp(-self.max_distance, self.max_distance)
        bias: Tensor = self.weight(self.bucket_of[distance + self.max_distance])
        return bias.permute(2, 0, 1)

    def on_paths(self, paths_BWt: Tensor, *, num_queries: int, num_keys: int) -> Tensor:
        """Return the biases [B H, W n, num_keys] of the last n = `num_queries` positions of each beam on its own path.

        `paths_BWt` contains the key positions of each beam, in order. Keys on no path of the beam have the bias -inf.
        """
        B, W, t = paths_BWt.shape
        places = torch.arange(t, device=paths_BWt.device)
        heads = self.weight.embedding_dim
        bias = self.weight.weight.new_full((B, heads, W, num_queries, num_keys), -torch.inf)
        for query in range(num_queries):
            length = t - num_queries + query + 1
            path_bias = self(places[length - 1 : length], places[:length]).expand(B, -1, W, -1)
            keys = paths_BWt[:, None, :, :length].expand_as(path_bias)
            bias[:, :, :, query].scatter_(3, keys, path_bias.to(bias.dtype))
        return bias.view(-1, W * num_queries, num_keys)


def _buckets(distance: Tensor, buckets: int, max_distance: int, *, bidirectional: bool) -> Tensor:
    """Return the bucket of each distance.

    Half of the buckets contain one distance each; the others grow with the logarithm of the distance up to
    max_distance.
    """
    base = torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        base = (distance > 0) * buckets
        away = distance.abs()
    else:
        away = (-distance).clamp(min=0)
    exact = buckets // 2
    # With float64 some distances would be in another bucket than in the published tables.
    growth = torch.log(away.float().clamp(min=1) / exact) / math.log(max_distance / exact)
    large = (exact + (growth * (buckets - exact)).long()).clamp(max=buckets - 1)
    return base + torch.where(away < exact, away, large)


class T5SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself, without scaling and without bias terms in its projections."""

    def __init__(self, width: int, *, heads: int, head_width: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.rate = dropout
        self.query_key_value = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.output = nn.Linear(heads * head_width, width, bias=False)

    def project(self, hidden_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries [B, H, L, E], and keys and values [2, B, H, L, E]."""
        B, L, _ = hidden_BLD.shape
        parts = self.query_key_value(hidden_BLD).view(B, L, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return parts[0], parts[1:]

    def forward(self, hidden_BLD: Tensor, bias: Tensor) -> Tensor:
        """Return the attention output [B, L, D].

        `bias` [B or 1, H or 1, L, L] is added to the logits; it is -inf where attention is forbidden.
        """
        query, (key, value) = self.project(hidden_BLD)
        rate = self.rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=rate, scale=1.0)
        out: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return out


class T5CrossAttention(nn.Module):
    """Multi-head attention to another sequence, whose keys and values are computed once and used many times."""

    def __init__(self, width: int, *, heads: int, head_width: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.rate = dropout
        self.query = nn.Linear(width, heads * head_width, bias=False)
        self.key_value = nn.Linear(width, 2 * heads * head_width, bias=False)
        self.output = nn.Linear(heads * head_width, width, bias=False)

    def keys_values(self, source_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values, each [B, H, L, E], of the sequence that is attended to."""
        B, L, _ = source_BLD.shape
        key, value = self.key_value(source_BLD).view(B, L, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return key, value

    def project(self, target_BSD: Tensor) -> Tensor:
        """Return the queries [B, H, S, E] of the attending sequence."""
        B, S, _ = target_BSD.shape
        query: Tensor = self.query(target_BSD).view(B, S, self.heads, -1).transpose(1, 2)
        return query

    def forward(self, target_BSD: Tensor, keys_values: tuple[Tensor, Tensor], bias: Tensor | None) -> Tensor:
        """Return the attention output [B, S, D].

        `bias` [B or 1, H or 1, S or 1, L] is added to the logits; it is -inf where attention is forbidden.
        """
        query = self.project(target_BSD)
        rate = self.rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, *keys_values, attn_mask=bias, dropout_p=rate, scale=1.0)
        out: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """Feed-forward network: linear layers with ReLU between them. T5 has one hidden layer."""

    def __init__(self, width: int, *, inner: int, hidden_layers: int, dropout: float) -> None:
        super().__init__()
        sizes = [width, *[inner] * hidden_layers, width]
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(sizes))
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the transformed hidden states, [..., D] like the input."""
        for layer in self.layers[:-1]:
            # In place, so that the widest tensor of the model is not allocated twice.
            hidden = self.dropout(layer(hidden).relu_())
        out: Tensor = self.layers[-1](hidden)
        return out


class EncoderLayer(nn.Module):
    """Pre-norm encoder layer of T5: x + attention(norm x); x + feed-forward(norm x)."""

    def __init__(
        self, width: int, *, heads: int, head_width: int, inner: int, hidden_layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm_attention = nn.RMSNorm(width, eps=1e-6)
        self.attention = T5SelfAttention(width, heads=heads, head_width=head_width, dropout=dropout)
        self.norm_feed = nn.RMSNorm(width, eps=1e-6)
        self.feed = FeedForward(width, inner=inner, hidden_layers=hidden_layers, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_BLD: Tensor, bias: Tensor) -> Tensor:
        """Return the hidden states after the layer, [B, L, D]; `bias` as in T5SelfAttention."""
        hidden_BLD = hidden_BLD + self.dropout(self.attention(self.norm_attention(hidden_BLD), bias))
        out: Tensor = hidden_BLD + self.dropout(self.feed(self.norm_feed(hidden_BLD)))
        return out


class DecoderLayer(nn.Module):
    """Pre-norm decoder layer of T5: self-attention, attention to the encoder and feed-forward, each with a residual."""

    def __init__(
        self, width: int, *, heads: int, head_width: int, inner: int, hidden_layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm_attention = nn.RMSNorm(width, eps=1e-6)
        self.attention = T5SelfAttention(width, heads=heads, head_width=head_width, dropout=dropout)
        self.norm_cross = nn.RMSNorm(width, eps=1e-6)
        self.cross = T5CrossAttention(width, heads=heads, head_width=head_width, dropout=dropout)
        self.norm_feed = nn.RMSNorm(width, eps=1e-6)
        self.feed = FeedForward(width, inner=inner, hidden_layers=hidden_layers, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, hidden_NSD: Tensor, cross: tuple[Tensor, Tensor], *, bias: Tensor, cross_bias: Tensor | None
    ) -> Tensor:
        """Return the hidden states after the layer, [N, S, D], of N = B K sequences, K in a row for each request.

        `cross` contains the keys and values of the encoder's output for each of B requests. Its K sequences read them
        together, so they are not repeated. The biases are as in T5SelfAttention and T5CrossAttention; `cross_bias` is
        the same for all positions.
        """
        hidden_NSD = hidden_NSD + self.dropout(self.attention(self.norm_attention(hidden_NSD), bias))
        queries_BQD = self.norm_cross(hidden_NSD).view(len(cross[0]), -1, hidden_NSD.shape[2])  # Q = K S
        crossed_BQD = self.cross(queries_BQD, cross, cross_bias)
        hidden_NSD = hidden_NSD + self.dropout(crossed_BQD.view_as(hidden_NSD))
        out: Tensor = hidden_NSD + self.dropout(self.feed(self.norm_feed(hidden_NSD)))
        return out

    def step(
        self,
        hidden_ND: Tensor,
        cross: tuple[Tensor, Tensor],
        earlier: Tensor | None,
        *,
        bias: Tensor,
        cross_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Decode S more positions of each request's beams.

        Nothing is copied when beams are reordered, since a request's beams share all its positions. The keys of a
        request, the encoder's too, are read once.

        For a handful of rows, time depends on the number of calls. So there is one call for each product, sums are
        part of these calls, and no submodule is called.

        Args:
            hidden_ND: hidden states [B S, D] of the new positions, S for each request.
            cross: keys and values of the encoder's output.
            earlier: keys and values [2, B H, n, E] of every earlier position of any beam of the request, or None.
            bias: [B H, S, n + S], added to the logits; -inf everywhere but on the path of a position.
            cross_bias: added to the logits of the attention to the encoder, or None.

        Returns:
            Hidden states [B S, D], and the keys and values of all positions so far [2, B H, n + S, E].

        """
        self_attention, cross_attention, rows = self.attention, self.cross, len(hidden_ND)
        B, heads = len(cross[0]), self_attention.heads
        parts = _normed(hidden_ND, self.norm_attention) @ self_attention.query_key_value.weight.T
        parts = parts.view(B, rows // B, 3, heads, -1).permute(2, 0, 3, 1, 4).flatten(1, 2)
        query, keys_values = parts[0], parts[1:]
        if earlier is not None:
            keys_values = torch.cat([earlier, keys_values], dim=2)
        # Plain products are faster than a fused kernel if there are few queries.
        weights = torch.baddbmm(bias, query, keys_values[0].transpose(1, 2)).softmax(2)
        mixed = torch.bmm(weights, keys_values[1]).view(B, heads, rows // B, -1).transpose(1, 2).reshape(rows, -1)
        hidden_ND = torch.addmm(hidden_ND, mixed, self_attention.output.weight.T)

        query = _normed(hidden_ND, self.norm_cross) @ cross_attention.query.weight.T
        query = query.view(B, rows // B, heads, -1).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, *cross, attn_mask=cross_bias, scale=1.0)
        hidden_ND = torch.addmm(hidden_ND, mixed.transpose(1, 2).reshape(rows, -1), cross_attention.output.weight.T)

        inner = _normed(hidden_ND, self.norm_feed)
        *weights_in, weight_out = (cast(nn.Linear, layer).weight.T for layer in self.feed.layers)
        for weight in weights_in:
            inner = (inner @ weight).relu_()
        return torch.addmm(hidden_ND, inner, weight_out), keys_values


def _normed(hidden_ND: Tensor, norm: nn.RMSNorm) -> Tensor:
    return torch.rms_norm(hidden_ND, hidden_ND.shape[1:], norm.weight, norm.eps)


def initialise_as_t5(module: nn.Module, *, width: int, heads: int, head_width: int) -> None:
    """Initialise the parameters of a model of these layers as T5 does, in place.

    Products keep unit variance without a scale in attention. Queries have the standard deviation (D E) ** -0.5, other
    matrices (number of inputs) ** -0.5, token embeddings (named `tokens`) 1, position biases D ** -0.5.
    """
    inner = heads * head_width
    for name, parameter in module.named_parameters():
        if name.endswith("query.weight"):
            nn.init.normal_(parameter, std=(width * head_width) ** -0.5)
        elif name.endswith("query_key_value.weight"):
            nn.init.normal_(parameter, std=width**-0.5)
            with torch.no_grad():
                parameter[:inner] *= head_width**-0.5
        elif name.endswith("attention.output.weight") or name.endswith("cross.output.weight"):
            nn.init.normal_(parameter, std=inner**-0.5)
        elif "_bias." in name:
            nn.init.normal_(parameter, std=width**-0.5)
        elif name.startswith("tokens"):
            nn.init.normal_(parameter, std=1.0)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
