"""Fused pointwise SiLU attention over jagged rows, forward and backward: no score is ever written to memory.

`ops.hstu_attention` documents what is computed, and calls this module for tensors on a GPU. In Triton's interpreter
(TRITON_INTERPRET=1) it runs on the CPU, for tests. There are four kernels: outputs; gradients of keys and values;
gradients of queries; gradients of the biases. Each recomputes the scores of a tile from tokens, positions and times.
None of them uses atomic additions, so the same input gives the same result to the last bit. Tokens beyond the end of a
row are loaded as zeros and add nothing, as SiLU(0) v = 0; so only causality needs a mask.

Shapes: M queries and N keys of a tile, K width of queries and keys, V width of values (both rounded up to a power of
two).
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

TILE = 64  # M and N, which the gradient of the position bias needs to be equal; half of it for float32
BINS = 256  # number of time buckets, 129, rounded up to a power of two
PROGRAMS = 512  # programs that sum gradients of the biases, each in its own row of the results


class FusedAttention(torch.autograd.Function):
    """Autograd function of `ops.hstu_attention.hstu_attention` with fused kernels; float32, bfloat16 or float16."""

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
        inputs, flags = _arguments(query, key, value, position_weights, time_weights, layout, normaliser, scale)
        if out.numel():
            _outputs[_grid(layout.max_queries, layout, query, flags)](*inputs, out, **flags)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of each input of `forward`."""
        query, key, value, position_weights, time_weights = ctx.saved_tensors
        layout, grad = ctx.layout, grad.contiguous()
        inputs, flags = _arguments(query, key, value, position_weights, time_weights, layout, ctx.normaliser, ctx.scale)
        grads = [torch.empty_like(part) for part in (query, key, value)]
        if key.numel():
            _key_gradients[_grid(layout.max_length, layout, query, flags)](*inputs, grad, grads[1], grads[2], **flags)
        if query.numel():
            _query_gradients[_grid(layout.max_queries, layout, query, flags)](*inputs, grad, grads[0], **flags)
        bias_grads: list[Tensor | None] = [None, None]
        if any(ctx.needs_input_grad[3:5]):
            bias_grads = _bias_gradients_of(inputs, flags, grad, position_weights, time_weights, layout, query)
        return (*grads, *bias_grads, None, None, None)


def _bias_gradients_of(
    inputs: tuple[Any, ...],
    flags: dict[str, Any],
    grad: Tensor,
    position_weights: Tensor | None,
    time_weights: Tensor | None,
    layout: Layout,
    query: Tensor,
) -> list[Tensor | None]:
    """Return the gradients of both bias tables, summed over programs in float32, in a fixed order."""
    blocks = triton.cdiv(layout.max_queries, flags["TILE"])
    tiles = blocks * (len(layout.offsets) - 1)
    programs = min(PROGRAMS, tiles)
    reach = 1 if position_weights is None else (len(position_weights) + 1) // 2
    by_distance = torch.zeros(programs, reach, device=query.device)
    by_bucket = torch.zeros(programs, BINS, device=query.device)
    if programs:
        _bias_gradients[(programs,)](*inputs, grad, by_distance, by_bucket, blocks, tiles, reach, BINS=BINS, **flags)
    position_grad = time_grad = None
    if position_weights is not None:
        position_grad = torch.zeros_like(position_weights)
        position_grad[:reach] = by_distance.sum(0).flip(0).to(position_grad.dtype)
    if time_weights is not None:
        time_grad = by_bucket.sum(0)[: len(time_weights)].to(time_weights.dtype)
    return [position_grad, time_grad]


def _grid(max_tokens: int, layout: Layout, query: Tensor, flags: dict[str, Any]) -> tuple[int, int]:
    return (len(layout.offsets) - 1) * query.shape[1], triton.cdiv(max_tokens, flags["TILE"])


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
    """Return the first arguments of all kernels, and the constants that each kernel is compiled for."""
    query_offsets = layout.offsets if layout.query_offsets is None else layout.query_offsets
    widths = query.shape[2], value.shape[2]
    # A kernel does not read a pointer that its flags switch off, so any tensor can be passed instead.
    inputs = (
        *(query, key, value, layout.offsets.contiguous(), query_offsets.contiguous(), query.shape[1], *widths),
        *(query if position_weights is None else position_weights.contiguous(),),
        *((query, query, query) if time_weights is None else (time_weights, layout.query_times, layout.key_times)),
        *(0 if position_weights is None else (len(position_weights) - 1) // 2, scale, 1 / normaliser),
    )
    is_float32 = query.dtype == torch.float32
    flags = {
        "POSITION": position_weights is not None,
        "TIME": time_weights is not None,
        "TILE": TILE // 2 if is_float32 else TILE,
        "K": max(16, triton.next_power_of_2(widths[0])),
        "V": max(16, triton.next_power_of_2(widths[1])),
        "PRECISION": "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",  # used for float32 only
        "num_warps": 8,
        "num_stages": 2,
    }
    return inputs, flags


@triton.jit
def _bounds(offsets, row):
    """Return the index of the first token of a row, and its number of tokens."""
    first = tl.load(offsets + row)
    return first, (tl.load(offsets + row + 1) - first).to(tl.int32)


@triton.jit
def _load(tokens, first, count, begin, head, heads, width, TILE: tl.constexpr, W: tl.constexpr):
    """Load the vectors [TILE, W] of one head for the tokens of a row from `begin` on; zeros beyond the row."""
    position = begin + tl.arange(0, TILE)
    column = tl.arange(0, W)
    real = (position < count)[:, None] & (column < width)[None, :]
    tokens += (first * heads + head) * width  # 64 bits for the start of a row, 32 bits within it: fewer registers
    return tl.load(tokens + position[:, None] * (heads * width) + column[None, :], mask=real, other=0.0)


@triton.jit
def _store(tokens, values, first, count, begin, head, heads, width, TILE: tl.constexpr, W: tl.constexpr):
    """Store vectors [TILE, W] at the addresses that `_load` reads."""
    position = begin + tl.arange(0, TILE)
    column = tl.arange(0, W)
    real = (position < count)[:, None] & (column < width)[None, :]
    tokens += (first * heads + head) * width
    addresses = tokens + position[:, None] * (heads * width) + column[None, :]
    tl.store(addresses, values.to(tokens.dtype.element_ty), mask=real)


@triton.jit
def _times(times, first, count, begin, TILE: tl.constexpr):
    """Load the times [TILE] of the tokens of a row from `begin` on; zeros beyond the row."""
    position = begin + tl.arange(0, TILE)
    return tl.load(times + first + position, mask=position < count, other=0)


@triton.jit
def _buckets(query_time, key_time):
    """Return `ops.hstu_attention.time_buckets` of the times from keys to queries, [M, N]."""
    seconds = (query_time[:, None] - key_time[None, :]).to(tl.float32) / 1000.0
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
    """Return the scores of a tile before SiLU and mask, [M, N]."""
    scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
    if POSITION:
        # Positions beyond a row may be further apart than the table reaches; their scores are never read.
        scores += tl.load(position + middle - tl.minimum(tl.maximum(distance, 0), middle)).to(tl.float32)
    if TIME:
        scores += tl.load(time + buckets).to(tl.float32)
    return scores


@triton.jit
def _weight(scores, distance):
    """Return SiLU of the scores, or 0 if the key is later than the query."""
    return tl.where(distance >= 0, scores * tl.sigmoid(scores), 0.0)


@triton.jit
def _slope(scores, grad, distance):
    """Return the gradient of the scores, computed from the gradient `grad` of their weights."""
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
    inverse,
    out,
    POSITION: tl.constexpr,
    TIME: tl.constexpr,
    TILE: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the outputs of one tile of queries of a row and a head per program.

    The last tiles of a row, which attend to the largest number of keys, start first.
    """
    row, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    first_key, length = _bounds(offsets, row)
    first_query, count = _bounds(query_offsets, row)
    begin = (tl.num_programs(1) - 1 - tl.program_id(1)) * TILE
    if begin < count:
        queries = _load(query, first_query, count, begin, head, heads, width_k, TILE, K)
        query_position = length - count + begin + tl.arange(0, TILE)
        query_time = query_position
        if TIME:
            query_time = _times(query_times, first_query, count, begin, TILE)
        mixed = tl.zeros((TILE, V), dtype=tl.float32)
        for start in range(0, tl.minimum(length, length - count + begin + TILE), TILE):
            keys = _load(key, first_key, length, start, head, heads, width_k, TILE, K)
            values = _load(value, first_key, length, start, head, heads, width_v, TILE, V)
            distance = query_position[:, None] - (start + tl.arange(0, TILE))[None, :]
            buckets = distance
            if TIME:
                buckets = _buckets(query_time, _times(key_times, first_key, length, start, TILE))
            scores = _scores(queries, keys, distance, buckets, position, time, middle, scale, POSITION, TIME, PRECISION)
            weights = _weight(scores, distance).to(values.dtype)
            mixed += tl.dot(weights, values, input_precision=PRECISION)
        _store(out, mixed * inverse, first_query, count, begin, head, heads, width_v, TILE, V)


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
    inverse,
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
    """Compute the gradients of one tile of keys and values of a row and a head per program.

    It loops over all queries that attend to these keys.
    """
    row, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    first_key, length = _bounds(offsets, row)
    first_query, count = _bounds(query_offsets, row)
    start = tl.program_id(1) * TILE
    if start < length:
        keys = _load(key, first_key, length, start, head, heads, width_k, TILE, K)
        values = _load(value, first_key, length, start, head, heads, width_v, TILE, V)
        key_time = start + tl.arange(0, TILE)
        if TIME:
            key_time = _times(key_times, first_key, length, start, TILE)
        key_sum = tl.zeros((TILE, K), dtype=tl.float32)
        value_sum = tl.zeros((TILE, V), dtype=tl.float32)
        first_begin = tl.maximum(start - (length - count), 0) // TILE * TILE  # earlier queries do not attend to them
        for begin in range(first_begin, count, TILE):
            queries = _load(query, first_query, count, begin, head, heads, width_k, TILE, K)
            grads = _load(grad, first_query, count, begin, head, heads, width_v, TILE, V)
            query_position = length - count + begin + tl.arange(0, TILE)
            distance = query_position[:, None] - (start + tl.arange(0, TILE))[None, :]
            buckets = distance
            if TIME:
                buckets = _buckets(_times(query_times, first_query, count, begin, TILE), key_time)
            scores = _scores(queries, keys, distance, buckets, position, time, middle, scale, POSITION, TIME, PRECISION)
            weights = _weight(scores, distance).to(grads.dtype)
            value_sum += tl.dot(tl.trans(weights), grads, input_precision=PRECISION)
            score_grads = _slope(scores, tl.dot(grads, tl.trans(values), input_precision=PRECISION), distance)
            key_sum += tl.dot(tl.trans(score_grads.to(queries.dtype)), queries, input_precision=PRECISION)
        _store(grad_key, key_sum * (inverse * scale), first_key, length, start, head, heads, width_k, TILE, K)
        _store(grad_value, value_sum * inverse, first_key, length, start, head, heads, width_v, TILE, V)


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
    inverse,
    grad,
    grad_query,
    POSITION: tl.constexpr,
    TIME: tl.constexpr,
    TILE: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the gradients of one tile of queries of a row and a head per program.

    It loops over all keys that these queries attend to.
    """
    row, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    first_key, length = _bounds(offsets, row)
    first_query, count = _bounds(query_offsets, row)
    begin = (tl.num_programs(1) - 1 - tl.program_id(1)) * TILE
    if begin < count:
        queries = _load(query, first_query, count, begin, head, heads, width_k, TILE, K)
        grads = _load(grad, first_query, count, begin, head, heads, width_v, TILE, V)
        query_position = length - count + begin + tl.arange(0, TILE)
        query_time = query_position
        if TIME:
            query_time = _times(query_times, first_query, count, begin, TILE)
        query_sum = tl.zeros((TILE, K), dtype=tl.float32)
        for start in range(0, tl.minimum(length, length - count + begin + TILE), TILE):
            keys = _load(key, first_key, length, start, head, heads, width_k, TILE, K)
            values = _load(value, first_key, length, start, head, heads, width_v, TILE, V)
            distance = query_position[:, None] - (start + tl.arange(0, TILE))[None, :]
            buckets = distance
            if TIME:
                buckets = _buckets(query_time, _times(key_times, first_key, length, start, TILE))
            scores = _scores(queries, keys, distance, buckets, position, time, middle, scale, POSITION, TIME, PRECISION)
            score_grads = _slope(scores, tl.dot(grads, tl.trans(values), input_precision=PRECISION), distance)
            query_sum += tl.dot(score_grads.to(keys.dtype), keys, input_precision=PRECISION)
        _store(grad_query, query_sum * (inverse * scale), first_query, count, begin, head, heads, width_k, TILE, K)


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
    inverse,
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
    """Sum the gradients of both bias tables over tiles of queries of all rows.

    Each program processes every P-th tile, P being the number of programs, and sums in its own row of both results.
    The gradients of a tile are summed over heads first. Then each row is rotated so that a column contains a diagonal:
    entry [m, x] is that of key m - x (mod TILE), whose distance is x more than that of the tile's corner, or x - TILE.
    The latter half is carried over to the next tile of keys, whose corner is TILE nearer.
    """
    line, column = tl.arange(0, TILE)[:, None], tl.arange(0, TILE)[None, :]
    rotated = (line - column + TILE) % TILE
    bins = tl.arange(0, BINS)
    bucket_sums = tl.zeros((BINS,), dtype=tl.float32)
    distance_sums = by_distance + tl.program_id(0) * reach
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row, begin = tile // blocks, tile % blocks * TILE
        first_key, length = _bounds(offsets, row)
        first_query, count = _bounds(query_offsets, row)
        if begin < count:
            tl.debug_barrier()  # this thread may read entries of the program's row that another thread has written
            corner = length - count + begin
            query_position = corner + tl.arange(0, TILE)
            query_time = query_position
            if TIME:
                query_time = _times(query_times, first_query, count, begin, TILE)
            carry = tl.zeros((TILE,), dtype=tl.float32)
            end = tl.minimum(length, corner + TILE)
            for start in range(0, end, TILE):
                distance = query_position[:, None] - (start + tl.arange(0, TILE))[None, :]
                buckets = distance
                if TIME:
                    buckets = _buckets(query_time, _times(key_times, first_key, length, start, TILE))
                pair_grads = tl.zeros((TILE, TILE), dtype=tl.float32)
                for head in range(0, heads):
                    queries = _load(query, first_query, count, begin, head, heads, width_k, TILE, K)
                    keys = _load(key, first_key, length, start, head, heads, width_k, TILE, K)
                    values = _load(value, first_key, length, start, head, heads, width_v, TILE, V)
                    grads = _load(grad, first_query, count, begin, head, heads, width_v, TILE, V)
                    scores = _scores(
                        queries, keys, distance, buckets, position, time, middle, scale, POSITION, TIME, PRECISION
                    )
                    weight_grads = tl.dot(grads, tl.trans(values), input_precision=PRECISION)
                    pair_grads += _slope(scores, weight_grads, distance) * inverse
                if POSITION:
                    diagonals = tl.gather(pair_grads, rotated, 1)
                    index = corner - start + tl.arange(0, TILE)
                    in_reach = (index >= 0) & (index < reach)
                    old_sums = tl.load(distance_sums + index, mask=in_reach, other=0.0)
                    new_sums = carry + tl.sum(tl.where(line >= column, diagonals, 0.0), 0)
                    tl.store(distance_sums + index, old_sums + new_sums, mask=in_reach)
                    carry = tl.sum(tl.where(line < column, diagonals, 0.0), 0)
                if TIME:
                    real = (distance >= 0) & (query_position < length)[:, None]
                    lowest = tl.min(tl.where(real, buckets, BINS))
                    highest = tl.max(tl.where(real, buckets, -1))
                    # A short loop: a bucket spans a third of the time before it.
                    for bucket in range(lowest, highest + 1):
                        total = tl.sum(tl.where(buckets == bucket, pair_grads, 0.0))
                        bucket_sums += tl.where(bins == bucket, total, 0.0)
            if POSITION:
                index = corner - tl.cdiv(end, TILE) * TILE + tl.arange(0, TILE)
                in_reach = (index >= 0) & (index < reach)
                old_sums = tl.load(distance_sums + index, mask=in_reach, other=0.0)
                tl.store(distance_sums + index, old_sums + carry, mask=in_reach)
    tl.store(by_bucket + tl.program_id(0) * BINS + bins, bucket_sums)
