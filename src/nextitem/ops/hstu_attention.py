"""Pointwise SiLU attention over jagged rows with position and time biases (HSTU, arXiv 2402.17152, eq. 2).

Shapes: T tokens of all rows, B rows, H heads, K width of queries and keys, V width of values, P length of the longest
row. Of a block: G rows, I queries and J keys of each row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

BLOCK = 2**19  # scores of a head that are in memory at once: 2 MiB in float32
MAX_CACHED_PAIRS = 2**22  # pairs of query and key whose time buckets a layout caches for the next layer: 16 MiB
TIME_BUCKETS, SQRT_TIME_BUCKETS = 129, 2048  # number of time buckets by scale
TimeScale = Literal["log", "sqrt"]


@dataclass(frozen=True, eq=False)
class Layout:
    """Row offsets and times of the tokens of a batch.

    Everything that follows from them is computed once, for all layers and for the backward pass.

    Attributes:
        offsets: [B + 1] int64: offsets of the rows of keys and values; empty rows are allowed.
        query_offsets: [B + 1] int64: offsets of the queries; None: all tokens.
        visible_keys: [queries] int64: number of first keys of its row that each query sees. The query itself is none of
            them: it stands right after them. None: the queries are the last tokens of their rows, and see themselves
            and all tokens before them.
        query_times: [queries] int64, milliseconds: time of each query, for example the time of the next event.
        key_times: [keys] int64, milliseconds: time of the event of each key; both times are None: undated.
        time_scale: scale of the time buckets.
        window: largest number of keys that a query sees: the last ones of those that it could see; None: all of them.

    """

    offsets: Tensor
    query_offsets: Tensor | None = None
    query_times: Tensor | None = None
    key_times: Tensor | None = None
    visible_keys: Tensor | None = None
    time_scale: TimeScale = "log"
    window: int | None = None

    def within(self, window: int | None) -> Layout:
        """Return the layout in which a query sees at most `window` keys; equal windows share what is computed once."""
        if window == self.window:
            return self
        if window not in self._windowed:
            self._windowed[window] = replace(self, window=window)
        return self._windowed[window]

    @cached_property
    def _windowed(self) -> dict[int | None, Layout]:
        return {}

    @cached_property
    def blocks(self) -> list[Block]:
        """Blocks of rows of similar length; a row that is too long for one block is split into several."""
        query_offsets = self.offsets if self.query_offsets is None else self.query_offsets
        lengths, num_queries = self.offsets.diff().cpu(), query_offsets.diff().cpu()
        order = torch.argsort(lengths, stable=True)
        order = order[(num_queries[order] > 0) & (lengths[order] > 0)]
        blocks = []
        for group in _groups(order, lengths[order].tolist(), num_queries[order].tolist()):
            max_queries, max_length = int(num_queries[group].max()), int(lengths[group].max())
            step = max_queries if len(group) > 1 else max(1, BLOCK // max_length)
            for first in range(0, max_queries, step):
                starts, query_starts = self.offsets[:-1].cpu()[group], query_offsets[:-1].cpu()[group]
                count = min(step, max_queries - first)
                rows = (starts, lengths[group], query_starts, num_queries[group])
                limits = (self.visible_keys, self.window)
                blocks.append(_block(*rows, *limits, first=first, count=count, device=self.offsets.device))
        return blocks

    def pairs(self, block: Block) -> Pairs:
        """Return distances, mask and time buckets of a block; they are cached if all blocks together are small."""
        if block.pairs is not None:
            return block.pairs
        keys = block.first_keys[:, None] + torch.arange(block.keys.shape[1], device=block.positions.device)
        distance = block.positions[:, :, None] - keys[:, None]
        is_visible = distance >= 0
        if self.window is not None:
            is_visible &= distance < self.window
        mask = is_visible[:, None].to(torch.float32)
        buckets = None
        if self.query_times is not None and self.key_times is not None:
            elapsed = self.query_times[block.queries][:, :, None] - self.key_times[block.keys][:, None]
            buckets = time_buckets(elapsed, self.time_scale)
        if self.visible_keys is not None:  # the query stands after the last key that it sees
            distance += 1
        pairs = Pairs((distance[-1:] if block.has_all_queries else distance).clamp_(min=0), mask, buckets)
        if self._can_cache_pairs:
            block.pairs = pairs
        return pairs

    @cached_property
    def max_length(self) -> int:
        """Number of tokens of the longest row."""
        return int(self.offsets.diff().max()) if len(self.offsets) > 1 else 0

    @cached_property
    def max_queries(self) -> int:
        """Largest number of queries of any row."""
        if self.query_offsets is None:
            return self.max_length
        return int(self.query_offsets.diff().max()) if len(self.query_offsets) > 1 else 0

    @cached_property
    def _can_cache_pairs(self) -> bool:
        return sum(block.queries.numel() * block.keys.shape[1] for block in self.blocks) <= MAX_CACHED_PAIRS


@dataclass(frozen=True, eq=False)
class Pairs:
    """Distances, mask and time buckets of the pairs of query and key of a block.

    Attributes:
        distance: [G, I, J] int64: number of tokens from key to query, 0 if the key is later. [1, I, J] for all rows if
            the block has all queries of its rows.
        mask: [G, 1, I, J]: 1 if the query sees the key, and both are real tokens; else 0.
        buckets: [G, I, J] int32: `time_buckets` of the time from key to query; None: undated.

    """

    distance: Tensor
    mask: Tensor
    buckets: Tensor | None


@dataclass(eq=False)
class Block:
    """Some queries of some rows, and the keys that they attend to, consecutive ones of each row.

    Rows are padded: an entry beyond the end of a row repeats the last token of the row.

    queries, keys            indices of the tokens among all queries and all keys, [G, I] and [G, J]
    real_queries, real_keys  bool, the same shapes: whether the entry is a token of the row, not padding
    positions                [G, I] position of the last key that the query sees; -1 for none, and for padding
    first_keys               [G] position of the first of these keys in its row
    has_all_queries          whether every token of every row is a query: then the distances of the last, longest row
                             are right for all rows
    pairs                    cached distances, mask and time buckets (Layout.pairs)
    """

    queries: Tensor
    keys: Tensor
    real_queries: Tensor
    real_keys: Tensor
    positions: Tensor
    first_keys: Tensor
    has_all_queries: bool
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
    """Return the causal attention output of each query, [queries, H, V].

        out_i = sum over the visible j of SiLU(scale q_i . k_j + position bias + time bias) v_j / normaliser

    At most `BLOCK` scores per head are in memory; the backward pass recomputes them. On a GPU with Triton installed, a
    fused kernel stores no scores at all (ops/triton/hstu_attention.py); float64 always uses the blocks.

    Args:
        query: queries [queries, H, K].
        key: keys [T, H, K].
        value: values [T, H, V].
        layout: row offsets and times of the tokens.
        normaliser: divisor of the sum.
        scale: factor of the inner products.
        position_weights: table [2 P - 1] of the position bias, shared by the heads. The bias of key j and query i is
            entry P - 1 + j - i, so entry P - 1 belongs to the query's own token and entry P - 2 to the one before it.
            Rows must not be longer than P; queries that stand after their row count as one more token of it.
        time_weights: table of the time bias, shared by the heads: the entry `time_buckets` of the time from key to
            query. It has TIME_BUCKETS entries, or SQRT_TIME_BUCKETS.

    Raises:
        ValueError: a row is longer than P, or `time_weights` are passed with a layout without times.

    """
    longest = layout.max_length + (layout.visible_keys is not None)
    if position_weights is not None and longest > (reach := (len(position_weights) + 1) // 2):
        raise ValueError(f"a row has {longest} tokens, position_weights reach {reach}")
    if time_weights is not None and (layout.query_times is None or layout.key_times is None):
        raise ValueError("time_weights need a layout with query_times and key_times")
    attention: Any = _Attention
    is_plain = layout.visible_keys is None and layout.window is None and layout.time_scale == "log"
    if is_plain and query.is_cuda and query.dtype != torch.float64 and find_spec("triton") is not None:
        from nextitem.ops.triton.hstu_attention import FusedAttention

        attention = FusedAttention
    out: Tensor = attention.apply(query, key, value, position_weights, time_weights, layout, normaliser, scale)
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
    """Return what `hstu_attention` returns, computed row by row by the formula."""
    query_offsets = layout.offsets if layout.query_offsets is None else layout.query_offsets
    parts = [value.new_zeros(0, *value.shape[1:])]
    for row in range(len(layout.offsets) - 1):
        keys = slice(int(layout.offsets[row]), int(layout.offsets[row + 1]))
        queries = slice(int(query_offsets[row]), int(query_offsets[row + 1]))
        length, count = keys.stop - keys.start, queries.stop - queries.start
        i = torch.arange(length - count, length, device=key.device)[:, None]
        j = torch.arange(length, device=key.device)
        is_visible = j <= i
        if layout.visible_keys is not None:
            i = layout.visible_keys[queries][:, None]
            is_visible = j < i
        if layout.window is not None:
            is_visible &= j >= i + (layout.visible_keys is None) - layout.window
        scores = torch.einsum("ihk,jhk->hij", query[queries], key[keys]) * scale
        if position_weights is not None:
            scores = scores + position_weights[(len(position_weights) - 1) // 2 - (i - j).clamp(min=0)]
        if time_weights is not None:
            assert layout.query_times is not None
            assert layout.key_times is not None
            elapsed = layout.query_times[queries][:, None] - layout.key_times[keys]
            scores = scores + time_weights[time_buckets(elapsed, layout.time_scale)]
        weights = F.silu(scores) * is_visible / normaliser
        parts.append(torch.einsum("hij,jhv->ihv", weights, value[keys]))
    return torch.cat(parts)


def time_buckets(milliseconds: Tensor, scale: TimeScale = "log") -> Tensor:
    """Return the bucket of each time difference, int32, from 0 on; differences below 0 count as 0.

    The logarithmic bucket is floor(ln(max(1, seconds)) / 0.301), at most 128: one second is 0, a minute 13, a day 37, a
    year 57. The bucket on the scale of square roots is floor(sqrt(minutes)), at most 2047: a minute is 1, an hour 7, a
    day 37, a year 724.
    """
    if scale == "sqrt":
        return milliseconds.float().div_(60_000).clamp_(min=0).sqrt_().int().clamp_(max=SQRT_TIME_BUCKETS - 1)
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
                    by_distance = by_pair.sum(0, keepdim=True) if block.has_all_queries else by_pair
                    grad_position[: middle + 1] += _binned(pairs.distance, by_distance, middle + 1).flip(0)
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
    """Return the scores of a block before SiLU and mask, [G, H, I, J]."""
    scores = queries @ keys.transpose(2, 3)
    if scale != 1:
        scores.mul_(scale)
    if position_weights is not None:
        middle = (len(position_weights) - 1) // 2
        scores.add_(position_weights[middle - pairs.distance][:, None])
    if time_weights is not None and pairs.buckets is not None:
        scores.add_(time_weights.index_select(0, pairs.buckets.flatten()).view(pairs.buckets.shape)[:, None])
    return scores


def _padded(values: Tensor, indices: Tensor) -> Tensor:
    """Return the tokens of `values [T, H, W]` at `indices [G, L]`, as [G, H, L, W]."""
    return values[indices].transpose(1, 2).contiguous()


def _add(total: Tensor, indices: Tensor, real: Tensor, grads: Tensor) -> None:
    """Add `grads [G, H, L, W]` to `total [T, H, W]` at those of `indices [G, L]` that are `real`, in place.

    In a block of several rows every token occurs once, in no other block, so its gradient can be stored, not added.
    """
    if len(indices) == 1:  # a part of a long row: its tokens are contiguous
        first, count = int(indices[0, 0]), int(real.sum())
        total[first : first + count] += grads[0, :, :count].transpose(0, 1)
    else:
        total[indices[real]] = grads.transpose(1, 2)[real]


def _binned(bins: Tensor, values: Tensor, count: int) -> Tensor:
    """Return the sum of the values in each of `count` bins, [count]."""
    return torch.bincount(bins.flatten(), weights=values.flatten(), minlength=count).to(values.dtype)


def _groups(order: Tensor, lengths: list[int], num_queries: list[int]) -> Iterator[Tensor]:
    """Yield consecutive parts of `order` (rows by ascending length) that fit into one block each."""
    first = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or (end + 1 - first) * lengths[end] * max(num_queries[first : end + 1]) > BLOCK:
            yield order[first:end]
            first = end


def _block(
    starts: Tensor,
    lengths: Tensor,
    query_starts: Tensor,
    num_queries: Tensor,
    visible_keys: Tensor | None,
    window: int | None,
    *,
    first: int,
    count: int,
    device: torch.device,
) -> Block:
    """Return the block with the queries `first` .. `first + count` - 1 of each row.

    The tensors are [G]: of each row, the index of its first key, its number of keys, the index of its first query, and
    its number of queries.
    """
    places = torch.arange(first, first + count)
    real_queries = places < num_queries[:, None]
    queries = query_starts[:, None] + places.minimum(num_queries[:, None] - 1)
    positions = (lengths - num_queries)[:, None] + places
    if visible_keys is not None:
        positions = visible_keys.cpu()[queries] - 1
    positions = positions.masked_fill(~real_queries, -1)
    ends = (positions.max(1).values + 1).clamp(min=1)
    first_keys = torch.zeros_like(lengths)
    if window is not None:
        earliest = positions.masked_fill(~real_queries, int(lengths.max())).min(1).values
        first_keys = (earliest + 1 - window).clamp(min=0).minimum(lengths - 1)
    keys = first_keys[:, None] + torch.arange(max(1, int((ends - first_keys).max())))
    real_keys = keys < lengths[:, None]
    return Block(
        queries.to(device),
        (starts[:, None] + keys.minimum(lengths[:, None] - 1)).to(device),
        real_queries.to(device),
        real_keys.to(device),
        positions.to(device),
        first_keys.to(device),
        has_all_queries=visible_keys is None and bool((lengths == num_queries).all()),
    )
