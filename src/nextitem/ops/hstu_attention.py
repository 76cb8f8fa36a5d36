"""Pointwise SiLU attention over jagged rows with biases by position and time (HSTU, arXiv 2402.17152, eq. 2).

Shapes: T tokens of all rows, B rows, H heads, K width of queries and keys, V width of values, P longest row; of a
block, G rows, I queries and J keys of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

BLOCK = 2**19  # scores of a head that are held at once: 2 MiB in float32
KEPT = 2**22  # time buckets that a layout keeps for the next layer: 16 MiB
TIME_BUCKETS = 129


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the tokens of a batch stand: what follows from it is worked out once, for all layers and the way back.

    offsets        [B + 1] int64: the rows of keys and values; empty rows are legal
    query_offsets  [B + 1] int64: queries are the last tokens of their rows; None: all of them
    query_times    [queries] int64, milliseconds: when each query is asked, for example the time of the next event
    key_times      [keys] int64, milliseconds: when each key happened; both None: undated
    """

    offsets: Tensor
    query_offsets: Tensor | None = None
    query_times: Tensor | None = None
    key_times: Tensor | None = None

    @cached_property
    def blocks(self) -> list[Block]:
        """Rows of similar length together, a row that is too long for a block in parts."""
        asked = self.offsets if self.query_offsets is None else self.query_offsets
        lengths, queries = self.offsets.diff().cpu(), asked.diff().cpu()
        order = torch.argsort(lengths, stable=True)
        order = order[queries[order] > 0]
        found = []
        for group in _groups(order, lengths[order].tolist(), queries[order].tolist()):
            most, longest = int(queries[group].max()), int(lengths[group].max())
            step = most if len(group) > 1 else max(1, BLOCK // longest)
            for first in range(0, most, step):
                rows = (self.offsets[:-1].cpu()[group], lengths[group], asked[:-1].cpu()[group], queries[group])
                found.append(_block(*rows, first=first, count=min(step, most - first), device=self.offsets.device))
        return found

    def pairs(self, block: Block) -> Pairs:
        """What stands between the queries and the keys of a block; kept where all blocks together are small."""
        if block.pairs is not None:
            return block.pairs
        distance = block.place[:, :, None] - torch.arange(block.keys.shape[1], device=block.place.device)
        mask = (distance >= 0)[:, None].to(torch.float32)
        buckets = None
        if self.query_times is not None and self.key_times is not None:
            buckets = time_buckets(self.query_times[block.queries][:, :, None] - self.key_times[block.keys][:, None])
        found = Pairs((distance[-1:] if block.alike else distance).clamp_(min=0), mask, buckets)
        if self._small:
            block.pairs = found
        return found

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.offsets.diff().max()) if len(self.offsets) > 1 else 0

    @cached_property
    def most_queries(self) -> int:
        """Queries of the row with most of them."""
        if self.query_offsets is None:
            return self.longest
        return int(self.query_offsets.diff().max()) if len(self.query_offsets) > 1 else 0

    @cached_property
    def _small(self) -> bool:
        return sum(block.queries.numel() * block.keys.shape[1] for block in self.blocks) <= KEPT


@dataclass(frozen=True, eq=False)
class Pairs:
    """Queries against keys of a block.

    distance  [G, I, J] (one for all rows where these are alike) int64: tokens from key to query, 0 if the key is later
    mask      [G, 1, I, J] 1 where the key is the query or before it, and both are real; else 0
    buckets   [G, I, J] int32: `time_buckets` of the time from key to query; None: undated
    """

    distance: Tensor
    mask: Tensor
    buckets: Tensor | None


@dataclass(eq=False)
class Block:
    """Some queries of some rows, and all keys that they may see; places beyond a row repeat its last token.

    queries, keys            places among all tokens, [G, I] and [G, J]
    real_queries, real_keys  bool, the same shapes: not beyond the row
    place                    [G, I] of the query within its row; -1 beyond it
    alike                    all queries of all rows are asked: the distances of the last, longest row hold for all
    """

    queries: Tensor
    keys: Tensor
    real_queries: Tensor
    real_keys: Tensor
    place: Tensor
    alike: bool
    pairs: Pairs | None = None


def hstu_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    *,
    normaliser: float,
    scale: float = 1.0,
    position_weights: Tensor | None = None,
    time_weights: Tensor | None = None,
) -> Tensor:
    """out_i = sum over j <= i of SiLU(scale q_i . k_j + position bias + time bias) v_j / normaliser, [queries, H, V].

    `query [queries, H, K]`, `key [T, H, K]`, `value [T, H, V]`. The position bias is `position_weights [2 P - 1]` at
    P - 1 + j - i, so the last token before a query has the highest place but one; rows must not be longer than P. The
    time bias is `time_weights [129]` at `time_buckets` of the time from key to query. Both are shared by the heads.
    Never holds more than `BLOCK` scores a head; the way back computes them anew. On a GPU, where Triton is installed,
    a fused kernel holds none (ops/triton/hstu_attention.py); float64 is left to the blocks.
    """
    if position_weights is not None and layout.longest > (reach := (len(position_weights) + 1) // 2):
        raise ValueError(f"a row has {layout.longest} tokens, position_weights reach {reach}")
    if time_weights is not None and (layout.query_times is None or layout.key_times is None):
        raise ValueError("time_weights need a layout with query_times and key_times")
    way: Any = _Attention
    if query.is_cuda and query.dtype != torch.float64 and find_spec("triton") is not None:
        from nextitem.ops.triton.hstu_attention import FusedAttention

        way = FusedAttention
    out: Tensor = way.apply(query, key, value, position_weights, time_weights, layout, normaliser, scale)
    return out


def hstu_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    *,
    normaliser: float,
    scale: float = 1.0,
    position_weights: Tensor | None = None,
    time_weights: Tensor | None = None,
) -> Tensor:
    """The same row by row, as the formula says."""
    asked = layout.offsets if layout.query_offsets is None else layout.query_offsets
    parts = [value.new_zeros(0, *value.shape[1:])]
    for row in range(len(layout.offsets) - 1):
        keys = slice(int(layout.offsets[row]), int(layout.offsets[row + 1]))
        queries = slice(int(asked[row]), int(asked[row + 1]))
        length, count = keys.stop - keys.start, queries.stop - queries.start
        i = torch.arange(length - count, length, device=key.device)[:, None]
        j = torch.arange(length, device=key.device)
        scores = torch.einsum("ihk,jhk->hij", query[queries], key[keys]) * scale
        if position_weights is not None:
            scores = scores + position_weights[(len(position_weights) - 1) // 2 + j - i]
        if time_weights is not None:
            assert layout.query_times is not None
            assert layout.key_times is not None
            between = layout.query_times[queries][:, None] - layout.key_times[keys]
            scores = scores + time_weights[time_buckets(between)]
        weights = F.silu(scores) * (j <= i) / normaliser
        parts.append(torch.einsum("hij,jhv->ihv", weights, value[keys]))
    return torch.cat(parts)


def time_buckets(milliseconds: Tensor) -> Tensor:
    """floor(ln(max(1, seconds)) / 0.301), at most 128, int32: a second is 0, a minute 13, a day 37, a year 57."""
    seconds = milliseconds.float().div_(1000).clamp_(min=1)
    return seconds.log_().div_(0.301).int().clamp_(max=TIME_BUCKETS - 1)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        position_weights: Tensor | None,
        time_weights: Tensor | None,
        layout: Layout,
        normaliser: float,
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, position_weights, time_weights)
        ctx.layout, ctx.normaliser, ctx.scale = layout, normaliser, scale
        out = value.new_zeros(len(query), *value.shape[1:])
        for block in layout.blocks:
            keys, values = _padded(key, block.keys), _padded(value, block.keys)
            pairs = layout.pairs(block)
            scores = _scores(_padded(query, block.queries), keys, pairs, scale, position_weights, time_weights)
            weights = F.silu(scores, inplace=True).mul_(pairs.mask)
            mixed = (weights @ values).mul_(1 / normaliser)
            out[block.queries[block.real_queries]] = mixed.transpose(1, 2)[block.real_queries]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, position_weights, time_weights = ctx.saved_tensors
        layout, scale = ctx.layout, ctx.scale
        grads = [torch.zeros_like(part) for part in (query, key, value)]
        grad_position = None if position_weights is None else torch.zeros_like(position_weights)
        grad_time = None if time_weights is None else torch.zeros_like(time_weights)
        for block in layout.blocks:
            queries, keys, values = _padded(query, block.queries), _padded(key, block.keys), _padded(value, block.keys)
            grad_out = _padded(grad, block.queries).mul_(1 / ctx.normaliser)
            pairs = layout.pairs(block)
            scores = _scores(queries, keys, pairs, scale, position_weights, time_weights)
            weights = F.silu(scores).mul_(pairs.mask)
            grad_values = weights.transpose(2, 3) @ grad_out
            grad_scores = torch.ops.aten.silu_backward(grad_out @ values.transpose(2, 3), scores).mul_(pairs.mask)
            if grad_position is not None or grad_time is not None:
                by_pair = grad_scores.sum(1) if grad_scores.shape[1] > 1 else grad_scores[:, 0]
                if grad_position is not None:
                    middle = (len(grad_position) - 1) // 2
                    alike = by_pair.sum(0, keepdim=True) if block.alike else by_pair
                    grad_position[: middle + 1] += _binned(pairs.distance, alike, middle + 1).flip(0)
                if grad_time is not None and pairs.buckets is not None:
                    grad_time += _binned(pairs.buckets, by_pair, len(grad_time))
            if scale != 1:
                grad_scores.mul_(scale)
            _add(grads[0], block.queries, block.real_queries, grad_scores @ keys)
            _add(grads[1], block.keys, block.real_keys, grad_scores.transpose(2, 3) @ queries)
            _add(grads[2], block.keys, block.real_keys, grad_values)
        return (*grads, grad_position, grad_time, None, None, None)


def _scores(
    queries: Tensor,
    keys: Tensor,
    pairs: Pairs,
    scale: float,
    position_weights: Tensor | None,
    time_weights: Tensor | None,
) -> Tensor:
    """[G, H, I, J], before SiLU and mask."""
    scores = queries @ keys.transpose(2, 3)
    if scale != 1:
        scores.mul_(scale)
    if position_weights is not None:
        middle = (len(position_weights) - 1) // 2
        scores.add_(position_weights[middle - pairs.distance][:, None])
    if time_weights is not None and pairs.buckets is not None:
        scores.add_(time_weights.index_select(0, pairs.buckets.flatten()).view(pairs.buckets.shape)[:, None])
    return scores


def _padded(values: Tensor, places: Tensor) -> Tensor:
    """Tokens [T, H, W] at the places [G, L], as [G, H, L, W]."""
    return values[places].transpose(1, 2).contiguous()


def _add(into: Tensor, places: Tensor, real: Tensor, grads: Tensor) -> None:
    """Adds [G, H, L, W] at the real places; of rows in one block, every token stands there once."""
    if len(places) == 1:  # a part of a long row: its tokens follow one another
        first, count = int(places[0, 0]), int(real.sum())
        into[first : first + count] += grads[0, :, :count].transpose(0, 1)
    else:
        into[places[real]] = grads.transpose(1, 2)[real]


def _binned(bins: Tensor, values: Tensor, count: int) -> Tensor:
    """Sums of values by bin, [count]."""
    return torch.bincount(bins.flatten(), weights=values.flatten(), minlength=count).to(values.dtype)


def _groups(order: Tensor, lengths: list[int], queries: list[int]) -> Iterator[Tensor]:
    """Runs of `order`, whose lengths rise, that make a block together."""
    first = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or (end + 1 - first) * lengths[end] * max(queries[first : end + 1]) > BLOCK:
            yield order[first:end]
            first = end


def _block(
    starts: Tensor,
    lengths: Tensor,
    query_starts: Tensor,
    queries: Tensor,
    *,
    first: int,
    count: int,
    device: torch.device,
) -> Block:
    """Queries `first` .. `first + count` - 1 of each row (all [G])."""
    asked = torch.arange(first, first + count)
    place = (lengths - queries)[:, None] + asked  # of the query within its row
    width = int((place[:, -1] + 1).minimum(lengths).max()) if len(lengths) == 1 else int(lengths.max())
    keys = torch.arange(width)
    real_queries, real_keys = asked < queries[:, None], keys < lengths[:, None]
    return Block(
        (query_starts[:, None] + asked.minimum(queries[:, None] - 1)).to(device),
        (starts[:, None] + keys.minimum(lengths[:, None] - 1)).to(device),
        real_queries.to(device),
        real_keys.to(device),
        place.masked_fill(~real_queries, -1).to(device),
        alike=bool((lengths == queries).all()),
    )
