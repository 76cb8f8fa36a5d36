"""Fused pointwise SiLU attention over jagged rows, forward and backward: no score is ever written to memory.

`ops.hstu_attention` says what is computed and calls this for tensors on a GPU; in Triton's interpreter
(TRITON_INTERPRET=1) it runs on the CPU, for tests. Four kernels, each of which works the scores of a tile out anew from
tokens, places and times: outputs; gradients of keys and values; gradients of queries; gradients of the biases. None of
them uses atomic additions, so the same input gives the same result to the last bit. SiLU(0) v = 0, so what is loaded as
zeros beyond a row adds nothing, and only causality needs a mask.

Letters: M queries and N keys of a tile, K width of queries and keys, V of values (both rounded up to a power of two).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from nextitem.ops.hstu_attention import Layout

TILE = 64  # M and N; the gradient of the position bias needs them alike. Half of it for float32
BINS = 256  # time buckets, 129, rounded up to a power of two
PROGRAMS = 512  # that gather gradients of the biases, each in a row of its own


class FusedAttention(torch.autograd.Function):
    """`ops.hstu_attention.hstu_attention` without its blocks; float32, bfloat16 or float16."""

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
        """Return what `ops.hstu_attention.hstu_attention` returns, and save what `backward` reads."""
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        ctx.save_for_backward(query, key, value, position_weights, time_weights)
        ctx.layout, ctx.normaliser, ctx.scale = layout, normaliser, scale
        out = value.new_empty(len(query), *value.shape[1:])
        given, flags = _arguments(query, key, value, position_weights, time_weights, layout, normaliser, scale)
        if out.numel():
            _outputs[_grid(layout.most_queries, layout, query, flags)](*given, out, **flags)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of each input of `forward`."""
        query, key, value, position_weights, time_weights = ctx.saved_tensors
        layout, grad = ctx.layout, grad.contiguous()
        given, flags = _arguments(query, key, value, position_weights, time_weights, layout, ctx.normaliser, ctx.scale)
        grads = [torch.empty_like(part) for part in (query, key, value)]
        if key.numel():
            _key_gradients[_grid(layout.longest, layout, query, flags)](*given, grad, grads[1], grads[2], **flags)
        if query.numel():
            _query_gradients[_grid(layout.most_queries, layout, query, flags)](*given, grad, grads[0], **flags)
        of_biases: list[Tensor | None] = [None, None]
        if any(ctx.needs_input_grad[3:5]):
            of_biases = _bias_gradients_of(given, flags, grad, position_weights, time_weights, layout, query)
        return (*grads, *of_biases, None, None, None)


def _bias_gradients_of(
    given: tuple[Any, ...],
    flags: dict[str, Any],
    grad: Tensor,
    position_weights: Tensor | None,
    time_weights: Tensor | None,
    layout: Layout,
    query: Tensor,
) -> list[Tensor | None]:
    """Gradients of both biases, in float32 summed over programs in a fixed order."""
    blocks = triton.cdiv(layout.most_queries, flags["TILE"])
    tiles = blocks * (len(layout.offsets) - 1)
    programs = min(PROGRAMS, tiles)
    reach = 1 if position_weights is None else (len(position_weights) + 1) // 2
    by_distance = torch.zeros(programs, reach, device=query.device)
    by_bucket = torch.zeros(programs, BINS, device=query.device)
    if programs:
        _bias_gradients[(programs,)](*given, grad, by_distance, by_bucket, blocks, tiles, reach, BINS=BINS, **flags)
    of_position = of_time = None
    if position_weights is not None:
        of_position = torch.zeros_like(position_weights)
        of_position[:reach] = by_distance.sum(0).flip(0).to(of_position.dtype)
    if time_weights is not None:
        of_time = by_bucket.sum(0)[: len(time_weights)].to(time_weights.dtype)
    return [of_position, of_time]


def _grid(longest: int, layout: Layout, query: Tensor, flags: dict[str, Any]) -> tuple[int, int]:
    return (len(layout.offsets) - 1) * query.shape[1], triton.cdiv(longest, flags["TILE"])


def _arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_weights: Tensor | None,
    time_weights: Tensor | None,
    layout: Layout,
    normaliser: float,
    scale: float,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What all kernels take first, and the constants that each is compiled for."""
    asked = layout.offsets if layout.query_offsets is None else layout.query_offsets
    widths = query.shape[2], value.shape[2]
    # A kernel reads nothing through a pointer that its flags leave out: any tensor will do.
    given = (
        *(query, key, value, layout.offsets.contiguous(), asked.contiguous(), query.shape[1], *widths),
        *(query if position_weights is None else position_weights.contiguous(),),
        *((query, query, query) if time_weights is None else (time_weights, layout.query_times, layout.key_times)),
        *(0 if position_weights is None else (len(position_weights) - 1) // 2, scale, 1 / normaliser),
    )
    single = query.dtype == torch.float32
    flags = {
        "POSITION": position_weights is not None,
        "TIME": time_weights is not None,
        "TILE": TILE // 2 if single else TILE,
        "K": max(16, triton.next_power_of_2(widths[0])),
        "V": max(16, triton.next_power_of_2(widths[1])),
        "PRECISION": "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",  # of float32 alone
        "num_warps": 8,
        "num_stages": 2,
    }
    return given, flags


@triton.jit
def _bounds(offsets, row):
    """Where a row begins, and how many tokens it has."""
    first = tl.load(offsets + row)
    return first, (tl.load(offsets + row + 1) - first).to(tl.int32)


@triton.jit
def _load(tokens, first, count, begin, head, heads, width, TILE: tl.constexpr, W: tl.constexpr):
    """Vectors [TILE, W] of a head for the tokens `begin` .. of a row; zeros beyond it."""
    at = begin + tl.arange(0, TILE)
    column = tl.arange(0, W)
    real = (at < count)[:, None] & (column < width)[None, :]
    tokens += (first * heads + head) * width  # 64 bits for where a row begins, 32 within it: fewer registers
    return tl.load(tokens + at[:, None] * (heads * width) + column[None, :], mask=real, other=0.0)


@triton.jit
def _store(tokens, values, first, count, begin, head, heads, width, TILE: tl.constexpr, W: tl.constexpr):
    """The way back of `_load`."""
    at = begin + tl.arange(0, TILE)
    column = tl.arange(0, W)
    real = (at < count)[:, None] & (column < width)[None, :]
    tokens += (first * heads + head) * width
    tl.store(tokens + at[:, None] * (heads * width) + column[None, :], values.to(tokens.dtype.element_ty), mask=real)


@triton.jit
def _times(times, first, count, begin, TILE: tl.constexpr):
    at = begin + tl.arange(0, TILE)
    return tl.load(times + first + at, mask=at < count, other=0)


@triton.jit
def _buckets(asked_at, happened_at):
    """[M, N], `ops.hstu_attention.time_buckets`."""
    seconds = (asked_at[:, None] - happened_at[None, :]).to(tl.float32) / 1000.0
    return tl.minimum((tl.log(tl.maximum(seconds, 1.0)) / 0.301).to(tl.int32), 128)


@triton.jit
def _scores(
    queries,
    keys,
    distance,
    buckets,
    position,
    time,
    middle,
    scale,
    POSITION: tl.constexpr,
    TIME: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """[M, N], before SiLU and mask."""
    scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
    if POSITION:
        # Places beyond a row may be further away than the table reaches; what they score is never read.
        scores += tl.load(position + middle - tl.minimum(tl.maximum(distance, 0), middle)).to(tl.float32)
    if TIME:
        scores += tl.load(time + buckets).to(tl.float32)
    return scores


@triton.jit
def _weight(scores, distance):
    """SiLU where the key is not later than the query, else 0."""
    return tl.where(distance >= 0, scores * tl.sigmoid(scores), 0.0)


@triton.jit
def _slope(scores, grad, distance):
    """Gradient of the scores, from that of their weights."""
    gate = tl.sigmoid(scores)
    return tl.where(distance >= 0, grad * gate * (1 + scores * (1 - gate)), 0.0)


@triton.jit
def _outputs(
    query,
    key,
    value,
    offsets,
    query_offsets,
    heads,
    width_k,
    width_v,
    position,
    time,
    query_times,
    key_times,
    middle,
    scale,
    share,
    out,
    POSITION: tl.constexpr,
    TIME: tl.constexpr,
    TILE: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program a tile of queries, row and head; the last tiles, which see most keys, begin first."""
    row, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    first_key, length = _bounds(offsets, row)
    first_query, count = _bounds(query_offsets, row)
    begin = (tl.num_programs(1) - 1 - tl.program_id(1)) * TILE
    if begin < count:
        queries = _load(query, first_query, count, begin, head, heads, width_k, TILE, K)
        place = length - count + begin + tl.arange(0, TILE)
        asked_at = place
        if TIME:
            asked_at = _times(query_times, first_query, count, begin, TILE)
        mixed = tl.zeros((TILE, V), dtype=tl.float32)
        for start in range(0, tl.minimum(length, length - count + begin + TILE), TILE):
            keys = _load(key, first_key, length, start, head, heads, width_k, TILE, K)
            values = _load(value, first_key, length, start, head, heads, width_v, TILE, V)
            distance = place[:, None] - (start + tl.arange(0, TILE))[None, :]
            buckets = distance
            if TIME:
                buckets = _buckets(asked_at, _times(key_times, first_key, length, start, TILE))
            scores = _scores(queries, keys, distance, buckets, position, time, middle, scale, POSITION, TIME, PRECISION)
            weights = _weight(scores, distance).to(values.dtype)
            mixed += tl.dot(weights, values, input_precision=PRECISION)
        _store(out, mixed * share, first_query, count, begin, head, heads, width_v, TILE, V)


@triton.jit
def _key_gradients(
    query,
    key,
    value,
    offsets,
    query_offsets,
    heads,
    width_k,
    width_v,
    position,
    time,
    query_times,
    key_times,
    middle,
    scale,
    share,
    grad,
    grad_key,
    grad_value,
    POSITION: tl.constexpr,
    TIME: tl.constexpr,
    TILE: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program a tile of keys, row and head, over all queries that see them."""
    row, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    first_key, length = _bounds(offsets, row)
    first_query, count = _bounds(query_offsets, row)
    start = tl.program_id(1) * TILE
    if start < length:
        keys = _load(key, first_key, length, start, head, heads, width_k, TILE, K)
        values = _load(value, first_key, length, start, head, heads, width_v, TILE, V)
        happened_at = start + tl.arange(0, TILE)
        if TIME:
            happened_at = _times(key_times, first_key, length, start, TILE)
        of_keys = tl.zeros((TILE, K), dtype=tl.float32)
        of_values = tl.zeros((TILE, V), dtype=tl.float32)
        begin = tl.maximum(start - (length - count), 0) // TILE * TILE  # earlier queries see none of these
        for at in range(begin, count, TILE):
            queries = _load(query, first_query, count, at, head, heads, width_k, TILE, K)
            grads = _load(grad, first_query, count, at, head, heads, width_v, TILE, V)
            place = length - count + at + tl.arange(0, TILE)
            distance = place[:, None] - (start + tl.arange(0, TILE))[None, :]
            buckets = distance
            if TIME:
                buckets = _buckets(_times(query_times, first_query, count, at, TILE), happened_at)
            scores = _scores(queries, keys, distance, buckets, position, time, middle, scale, POSITION, TIME, PRECISION)
            weights = _weight(scores, distance).to(grads.dtype)
            of_values += tl.dot(tl.trans(weights), grads, input_precision=PRECISION)
            of_scores = _slope(scores, tl.dot(grads, tl.trans(values), input_precision=PRECISION), distance)
            of_keys += tl.dot(tl.trans(of_scores.to(queries.dtype)), queries, input_precision=PRECISION)
        _store(grad_key, of_keys * (share * scale), first_key, length, start, head, heads, width_k, TILE, K)
        _store(grad_value, of_values * share, first_key, length, start, head, heads, width_v, TILE, V)


@triton.jit
def _query_gradients(
    query,
    key,
    value,
    offsets,
    query_offsets,
    heads,
    width_k,
    width_v,
    position,
    time,
    query_times,
    key_times,
    middle,
    scale,
    share,
    grad,
    grad_query,
    POSITION: tl.constexpr,
    TIME: tl.constexpr,
    TILE: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program a tile of queries, row and head, over all keys that they see."""
    row, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    first_key, length = _bounds(offsets, row)
    first_query, count = _bounds(query_offsets, row)
    begin = (tl.num_programs(1) - 1 - tl.program_id(1)) * TILE
    if begin < count:
        queries = _load(query, first_query, count, begin, head, heads, width_k, TILE, K)
        grads = _load(grad, first_query, count, begin, head, heads, width_v, TILE, V)
        place = length - count + begin + tl.arange(0, TILE)
        asked_at = place
        if TIME:
            asked_at = _times(query_times, first_query, count, begin, TILE)
        of_queries = tl.zeros((TILE, K), dtype=tl.float32)
        for start in range(0, tl.minimum(length, length - count + begin + TILE), TILE):
            keys = _load(key, first_key, length, start, head, heads, width_k, TILE, K)
            values = _load(value, first_key, length, start, head, heads, width_v, TILE, V)
            distance = place[:, None] - (start + tl.arange(0, TILE))[None, :]
            buckets = distance
            if TIME:
                buckets = _buckets(asked_at, _times(key_times, first_key, length, start, TILE))
            scores = _scores(queries, keys, distance, buckets, position, time, middle, scale, POSITION, TIME, PRECISION)
            of_scores = _slope(scores, tl.dot(grads, tl.trans(values), input_precision=PRECISION), distance)
            of_queries += tl.dot(of_scores.to(keys.dtype), keys, input_precision=PRECISION)
        _store(grad_query, of_queries * (share * scale), first_query, count, begin, head, heads, width_k, TILE, K)


@triton.jit
def _bias_gradients(
    query,
    key,
    value,
    offsets,
    query_offsets,
    heads,
    width_k,
    width_v,
    position,
    time,
    query_times,
    key_times,
    middle,
    scale,
    share,
    grad,
    by_distance,
    by_bucket,
    blocks,
    tiles,
    reach,
    BINS: tl.constexpr,
    POSITION: tl.constexpr,
    TIME: tl.constexpr,
    TILE: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes tiles of queries of all rows in turn and adds up in its own row of both results.

    The gradients of a tile, summed over heads first, are turned so that a column holds a diagonal: entry [m, x] is that
    of key m - x (mod TILE), whose distance is x more than that of the tile's corner, or x - TILE. The latter half is
    carried to the next tile of keys, where the corner is TILE nearer.
    """
    line, column = tl.arange(0, TILE)[:, None], tl.arange(0, TILE)[None, :]
    turned = (line - column + TILE) % TILE
    bins = tl.arange(0, BINS)
    of_buckets = tl.zeros((BINS,), dtype=tl.float32)
    of_distances = by_distance + tl.program_id(0) * reach
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row, begin = tile // blocks, tile % blocks * TILE
        first_key, length = _bounds(offsets, row)
        first_query, count = _bounds(query_offsets, row)
        if begin < count:
            tl.debug_barrier()  # another thread may have written what this one reads of the program's row
            corner = length - count + begin
            place = corner + tl.arange(0, TILE)
            asked_at = place
            if TIME:
                asked_at = _times(query_times, first_query, count, begin, TILE)
            carried = tl.zeros((TILE,), dtype=tl.float32)
            end = tl.minimum(length, corner + TILE)
            for start in range(0, end, TILE):
                distance = place[:, None] - (start + tl.arange(0, TILE))[None, :]
                buckets = distance
                if TIME:
                    buckets = _buckets(asked_at, _times(key_times, first_key, length, start, TILE))
                of_pairs = tl.zeros((TILE, TILE), dtype=tl.float32)
                for head in range(0, heads):
                    queries = _load(query, first_query, count, begin, head, heads, width_k, TILE, K)
                    keys = _load(key, first_key, length, start, head, heads, width_k, TILE, K)
                    values = _load(value, first_key, length, start, head, heads, width_v, TILE, V)
                    grads = _load(grad, first_query, count, begin, head, heads, width_v, TILE, V)
                    scores = _scores(
                        queries, keys, distance, buckets, position, time, middle, scale, POSITION, TIME, PRECISION
                    )
                    of_weights = tl.dot(grads, tl.trans(values), input_precision=PRECISION)
                    of_pairs += _slope(scores, of_weights, distance) * share
                if POSITION:
                    diagonals = tl.gather(of_pairs, turned, 1)
                    at = corner - start + tl.arange(0, TILE)
                    kept = (at >= 0) & (at < reach)
                    found = carried + tl.sum(tl.where(line >= column, diagonals, 0.0), 0)
                    tl.store(of_distances + at, tl.load(of_distances + at, mask=kept, other=0.0) + found, mask=kept)
                    carried = tl.sum(tl.where(line < column, diagonals, 0.0), 0)
                if TIME:
                    real = (distance >= 0) & (place < length)[:, None]
                    lowest = tl.min(tl.where(real, buckets, BINS))
                    highest = tl.max(tl.where(real, buckets, -1))
                    for bucket in range(lowest, highest + 1):  # few: a bucket spans a third of the time before it
                        total = tl.sum(tl.where(buckets == bucket, of_pairs, 0.0))
                        of_buckets += tl.where(bins == bucket, total, 0.0)
            if POSITION:
                at = corner - tl.cdiv(end, TILE) * TILE + tl.arange(0, TILE)
                kept = (at >= 0) & (at < reach)
                tl.store(of_distances + at, tl.load(of_distances + at, mask=kept, other=0.0) + carried, mask=kept)
    tl.store(by_bucket + tl.program_id(0) * BINS + bins, of_buckets)
