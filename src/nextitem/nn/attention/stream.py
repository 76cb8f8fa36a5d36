"""Attention of rankers to token streams: histories are read once, and any number of candidates read the result.

The tokens of a history never see a candidate, and a candidate sees the tokens before its request and itself alone. So
the keys and values of a history can be cached, its candidates can be scored in any order and in parts of any size, and
several requests of one user can share one history (M-FALCON, arXiv 2402.17152).

Shapes: T tokens of all streams, P candidates, D width, H heads, K width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from nextitem.ops.hstu_attention import Layout, hstu_attention, time_buckets


@dataclass(frozen=True, eq=False)
class Projection:
    """Gate [tokens, H x K], and query, key and value [tokens, H, K] of some tokens."""

    gate: Tensor
    query: Tensor
    key: Tensor
    value: Tensor


class StreamLayer(Protocol):
    """A layer that mixes tokens by pointwise SiLU attention."""

    @property
    def normaliser(self) -> float:
        """Divisor of the sum over tokens, the same for every batch."""

    @property
    def scale(self) -> float:
        """Factor of the inner products."""

    @property
    def window(self) -> int | None:
        """Largest number of tokens that one sees, the last ones; None: all."""

    @property
    def position_weights(self) -> Tensor | None:
        """Table [2 P - 1] of the position bias, or None."""

    @property
    def time_weights(self) -> Tensor | None:
        """Table of the time bias, or None."""

    def project(self, hidden: Tensor, groups: Tensor | None) -> Projection:
        """Return gate, query, key and value of tokens with the hidden states [tokens, D], in these groups [tokens]."""

    def combine(self, hidden: Tensor, gate: Tensor, mixed: Tensor, groups: Tensor | None) -> Tensor:
        """Return the new hidden states [tokens, D] from the former ones, the gate, and the mixture [tokens, H x K]."""


@dataclass(frozen=True, eq=False)
class PastTokens:
    """Cached keys and values of tokens that were read before; new tokens follow at the end of each stream.

    Attributes:
        order: [all tokens] int64: indices that put the cached tokens followed by the new ones into stream order.
        cache: [cached tokens, 2 x layers, H, K]: keys and values, layer by layer.

    """

    order: Tensor
    cache: Tensor


def read_stream(
    layers: Sequence[StreamLayer],
    hidden: Tensor,
    layout: Layout,
    *,
    groups: Tensor | None = None,
    sees_itself: Tensor | None = None,
    past: PastTokens | None = None,
) -> Tensor:
    """Return the keys and values of all tokens in every layer, [T, 2 x layers, H, K].

    Nothing reads the hidden states after the last layer, so its attention is not computed.

    Args:
        layers: the layers that are read, from the first on.
        hidden: the tokens [T, D], or those that follow `past`.
        layout: where the tokens are in their streams, and what they see.
        groups: group of each token, for layers with weights by group.
        sees_itself: bool [T]: which tokens see themselves beside the keys that `layout` shows them; None: none.
        past: cached tokens of the same streams.

    """
    cache: list[Tensor] = []
    for number, layer in enumerate(layers):
        projection = layer.project(hidden, groups)
        pair = torch.stack([projection.key, projection.value], 1)
        if past is not None:
            pair = torch.cat([past.cache[:, 2 * number : 2 * number + 2], pair])[past.order]
        cache.append(pair)
        if number + 1 < len(layers):
            mixed = _mix(layer, projection, pair[:, 0], pair[:, 1], layout)
            if sees_itself is not None:
                mixed = mixed + _own_part(layer, projection, layout) * sees_itself[:, None, None]
            hidden = layer.combine(hidden, projection.gate, mixed.flatten(1), groups)
    return torch.cat(cache, 1)


def read_candidates(
    layers: Sequence[StreamLayer],
    hidden: Tensor,
    cache: Tensor,
    layout: Layout,
    *,
    groups: Tensor | None = None,
) -> Tensor:
    """Return the hidden states of candidates [P, D] after all layers.

    Args:
        layers: the layers by which `cache` was read.
        hidden: the tokens of the candidates [P, D].
        cache: what `read_stream` returned for the streams.
        layout: which stream each candidate belongs to, and how many of its tokens it sees (`visible_keys`).
        groups: group of each candidate, for layers with weights by group.

    """
    for number, layer in enumerate(layers):
        projection = layer.project(hidden, groups)
        mixed = _mix(layer, projection, cache[:, 2 * number], cache[:, 2 * number + 1], layout)
        mixed = mixed + _own_part(layer, projection, layout)
        hidden = layer.combine(hidden, projection.gate, mixed.flatten(1), groups)
    return hidden


def _mix(layer: StreamLayer, projection: Projection, keys: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """Return the sum over the tokens that each query sees, [queries, H, K]."""
    return hstu_attention(
        projection.query,
        keys,
        values,
        layout.within(layer.window),
        normaliser=layer.normaliser,
        scale=layer.scale,
        position_weights=layer.position_weights,
        time_weights=None if layout.query_times is None else layer.time_weights,
    )


def _own_part(layer: StreamLayer, projection: Projection, layout: Layout) -> Tensor:
    """Return what each token contributes to itself, [tokens, H, K]: its distance and its elapsed time are 0."""
    scores = (projection.query * projection.key).sum(-1) * layer.scale
    if layer.position_weights is not None:
        scores = scores + layer.position_weights[(len(layer.position_weights) - 1) // 2]
    if layer.time_weights is not None and layout.query_times is not None:
        bucket = time_buckets(layout.query_times.new_zeros(1), layout.time_scale)
        scores = scores + layer.time_weights[bucket]
    return F.silu(scores)[:, :, None] * projection.value / layer.normaliser
