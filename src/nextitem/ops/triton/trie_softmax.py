"""Fused softmax over the children of given nodes, forward and backward: no logit is ever written to memory.

`ops.trie_softmax` documents what is computed, and calls this module for tensors on a GPU. In Triton's interpreter
(TRITON_INTERPRET=1) it runs on the CPU, for tests. Rows are sorted by parent first, so that the rows of one parent
share the reads of its children's vectors. Then there are three kernels:

    log-probabilities          a block of rows of one parent per program. It loops over the children with a running
                               maximum, and sums their vectors, weighted by probability, on the way: the gradient of a
                               log-probability by the hidden state is the target's vector minus that mean.
    gradients of the vectors   a tile of the children of one parent per program; it loops over the rows of that parent.
    sums of shared vectors     only if nodes read their vectors through `vector_rows`: adds the gradients of nodes that
                               read the same vector, in the order of nodes.

None of them uses atomic additions, so the same input gives the same result to the last bit. The sizes of all grids
follow from the shapes of the tensors, so the host never waits for the GPU; superfluous programs return at once.

Shapes: R rows, D width, W width rounded up to a power of two, V nodes, X rows of the vectors, C children of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from nextitem.ops.trie_softmax import ChildRanges

TILE = 64  # children of a tile, and rows of a large block, for widths up to 128; half of it for float32
ROWS = 16  # rows of a small block: the minimum size of a matrix product
ALONE = torch.iinfo(torch.int64).max  # stands for the start of rows without competing children: it sorts them last


class FusedTrieSoftmax(torch.autograd.Function):
    """Autograd function of `ops.trie_softmax.trie_softmax` with fused kernels; float32, bfloat16 or float16."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        vectors: Tensor,
        children: ChildRanges,
        targets: Tensor,
        vector_rows: Tensor | None,
    ) -> Tensor:
        """Return what `ops.trie_softmax.trie_softmax` returns, and save what `backward` reads."""
        rows = SortedRows.of(children, targets)
        states, vectors = hidden[rows.order], vectors.contiguous()
        log_probs = hidden.new_zeros(len(hidden))
        normalisers = torch.empty(len(hidden), device=hidden.device)
        needs_slopes = ctx.needs_input_grad[0]
        slopes = torch.zeros(hidden.shape if needs_slopes else 1, device=hidden.device)
        if len(hidden):
            inputs, flags = _arguments(states, vectors, vector_rows, rows)
            flags["SLOPES"] = needs_slopes
            _log_probabilities[(len(hidden),)](
                *inputs, rows.order, rows.firsts, log_probs, normalisers, slopes, **flags
            )
        ctx.save_for_backward(states, vectors, normalisers, slopes)
        ctx.rows, ctx.vector_rows = rows, vector_rows
        return log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of each input of `forward`."""
        states, vectors, normalisers, slopes = ctx.saved_tensors
        grads: list[Tensor | None] = [None, None]
        if ctx.needs_input_grad[0]:
            grads[0] = (grad[:, None] * slopes).to(states.dtype)
        if ctx.needs_input_grad[1]:
            row_grads = grad[ctx.rows.order].float()
            grads[1] = _vector_gradients_of(states, vectors, normalisers, row_grads, ctx.vector_rows, ctx.rows)
        return (*grads, None, None, None)


@dataclass(frozen=True, eq=False)
class SortedRows:
    """The rows sorted by parent: rows of one parent are neighbours, rows with fewer than two children are last.

    Attributes:
        order: [R] int64, the number of each row before sorting.
        starts: [R] int64, first child of each row's parent; `ALONE` if it has fewer than two.
        counts: [R] int64, number of children.
        columns: [R] int64, the number of the target among the children.
        firsts: [R] int64, index of the first row of the same parent.
        ends: [R] int64, index after the last row of the same parent.

    """

    order: Tensor
    starts: Tensor
    counts: Tensor
    columns: Tensor
    firsts: Tensor
    ends: Tensor

    @classmethod
    def of(cls, children: ChildRanges, targets: Tensor) -> SortedRows:
        """Return the sorted rows, without waiting for the device."""
        starts, order = children.starts.masked_fill(children.counts < 2, ALONE).sort(stable=True)
        firsts, ends = torch.searchsorted(starts, starts), torch.searchsorted(starts, starts, right=True)
        return cls(order, starts, children.counts[order], (targets - children.starts)[order], firsts, ends)

    def tiles(self, size: int, num_nodes: int) -> tuple[Tensor, Tensor]:
        """Divide the children of every parent into tiles; parents own disjoint nodes, which limits their number.

        Returns:
            [tiles] int64: the first row of the parent of each tile, R for superfluous ones; and [R] int64: the number
            of tiles up to and including those of a row's parent.

        """
        indices = torch.arange(len(self.starts), device=self.starts.device)
        has_tiles = (self.firsts == indices) & (self.starts < ALONE)
        ends = ((self.counts + size - 1) // size).masked_fill(~has_tiles, 0).cumsum(0)
        most = triton.cdiv(num_nodes, size) + min(len(self.starts), num_nodes)
        return torch.searchsorted(ends, torch.arange(most, device=ends.device), right=True), ends


def _vector_gradients_of(
    states: Tensor,
    vectors: Tensor,
    normalisers: Tensor,
    row_grads: Tensor,
    vector_rows: Tensor | None,
    rows: SortedRows,
) -> Tensor:
    """Return the gradient of the vectors, [X, D]. The tensors of rows are sorted as `rows`."""
    out = torch.zeros_like(vectors)
    if not len(states):
        return out
    inputs, flags = _arguments(states, vectors, vector_rows, rows)
    num_nodes = len(vectors) if vector_rows is None else len(vector_rows)
    parents, tile_ends = rows.tiles(flags["TILE"], num_nodes)
    by_node, readers = out, parents
    if vector_rows is not None:
        by_node = torch.empty(num_nodes, vectors.shape[1], device=vectors.device)
        readers = torch.full((num_nodes,), len(vectors), dtype=torch.int32, device=vectors.device)
    _vector_gradients[(len(parents),)](
        *inputs, normalisers, row_grads, parents, tile_ends, readers, by_node, len(states), **flags
    )
    if vector_rows is not None:
        readers, nodes = readers.sort(stable=True)
        sizes, block = (num_nodes, len(vectors), vectors.shape[1]), min(32, 4096 // flags["W"])
        _shared_sums[(triton.cdiv(num_nodes, block),)](readers, nodes, by_node, out, *sizes, BLOCK=block, W=flags["W"])
    return out


def _arguments(
    states: Tensor, vectors: Tensor, vector_rows: Tensor | None, rows: SortedRows
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the first arguments of the kernels of rows, and the constants that each kernel is compiled for."""
    width = vectors.shape[1]
    # A kernel does not read a pointer that its flags switch off, so any tensor can be passed instead.
    indirect = rows.order if vector_rows is None else vector_rows.contiguous()
    inputs = (states, vectors, indirect, rows.starts, rows.counts, rows.columns, rows.ends, width)
    return inputs, {"INDIRECT": vector_rows is not None, **constants(width, states.dtype)}


def constants(width: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return the sizes and options of the kernels of rows for vectors of that width and hidden states of that type.

    Wide vectors and float32 have smaller tiles, so that the sums of a program fit into its registers.
    """
    padded = max(16, triton.next_power_of_2(width))
    tile = min(TILE, TILE * 128 // padded) // (2 if dtype == torch.float32 else 1)
    precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"  # used for float32 only
    return {
        "ROWS": ROWS,
        "TILE": max(16, tile),
        "W": padded,
        "PRECISION": precision,
        "num_warps": 4,
        "num_stages": 2,
    }


@triton.jit
def _load(values, indices, real, width, W: tl.constexpr):
    """Load the vectors [indices, W] of the given indices; zeros for those that are not real."""
    column = tl.arange(0, W)
    mask = real[:, None] & (column < width)[None, :]
    return tl.load(values + indices.to(tl.int64)[:, None] * width + column[None, :], mask=mask, other=0.0)


@triton.jit
def _store(values, indices, real, content, width, W: tl.constexpr):
    """Store vectors at the addresses that `_load` reads."""
    column = tl.arange(0, W)
    mask = real[:, None] & (column < width)[None, :]
    addresses = values + indices.to(tl.int64)[:, None] * width + column[None, :]
    tl.store(addresses, content.to(values.dtype.element_ty), mask=mask)


@triton.jit
def _index(vector_rows, nodes, real, INDIRECT: tl.constexpr):
    """Return the rows of the vectors of the nodes."""
    if INDIRECT:
        nodes = tl.load(vector_rows + nodes, mask=real, other=0)
    return nodes


@triton.jit
def _log_probabilities(
    states,
    vectors,
    vector_rows,
    starts,
    counts,
    columns,
    ends,
    width,
    order,
    firsts,
    log_probs,
    normalisers,
    slopes,
    SLOPES: tl.constexpr,
    INDIRECT: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the log-probabilities of a block of rows of one parent, their normalisers, and the slopes.

    The program of every `ROWS`-th row of a parent computes the block that begins with it. A slope is the gradient of
    the log-probability with respect to the hidden state.
    """
    begin = tl.program_id(0)
    count = tl.load(counts + begin).to(tl.int32)
    if (count > 1) & ((begin - tl.load(firsts + begin)) % ROWS == 0):
        start = tl.load(starts + begin)
        row = begin + tl.arange(0, ROWS)
        is_row = row < tl.load(ends + begin)
        state = _load(states, row, is_row, width, W)
        target = tl.load(columns + row, mask=is_row, other=0)
        highest = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
        total = tl.zeros((ROWS,), dtype=tl.float32)
        target_logit = tl.zeros((ROWS,), dtype=tl.float32)
        mean = tl.zeros((ROWS, W), dtype=tl.float32)
        for first in range(0, count, TILE):
            column = first + tl.arange(0, TILE)
            is_child = column < count
            index = _index(vector_rows, start + column, is_child, INDIRECT)
            tile = _load(vectors, index, is_child, width, W).to(state.dtype)
            logits = tl.dot(state, tl.trans(tile), input_precision=PRECISION)
            logits = tl.where(is_child[None, :], logits, float("-inf"))
            target_logit += tl.sum(tl.where(column[None, :] == target[:, None], logits, 0.0), 1)
            raised = tl.maximum(highest, tl.max(logits, 1))
            weights = tl.exp(logits - raised[:, None])
            shrink = tl.exp(highest - raised)
            total = total * shrink + tl.sum(weights, 1)
            if SLOPES:
                mean = mean * shrink[:, None] + tl.dot(weights.to(tile.dtype), tile, input_precision=PRECISION)
            highest = raised
        normaliser = highest + tl.log(total)
        place = tl.load(order + row, mask=is_row, other=0)
        tl.store(normalisers + row, normaliser, mask=is_row)
        tl.store(log_probs + place, (target_logit - normaliser).to(log_probs.dtype.element_ty), mask=is_row)
        if SLOPES:
            of_target = _load(vectors, _index(vector_rows, start + target, is_row, INDIRECT), is_row, width, W)
            _store(slopes, place, is_row, of_target.to(tl.float32) - mean / total[:, None], width, W)


@triton.jit
def _add_rows(
    sums,
    tile,
    column,
    begin,
    end,
    states,
    columns,
    normalisers,
    row_grads,
    width,
    SIZE: tl.constexpr,
    W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the sums [C, W] plus the gradients of the vectors `tile` by the rows from `begin` on."""
    row = begin + tl.arange(0, SIZE)
    is_row = row < end
    state = _load(states, row, is_row, width, W)
    normaliser = tl.load(normalisers + row, mask=is_row, other=0.0)
    grad = tl.load(row_grads + row, mask=is_row, other=0.0)
    target = tl.load(columns + row, mask=is_row, other=-1)
    logits = tl.dot(tile, tl.trans(state), input_precision=PRECISION)
    is_target = tl.where(column[:, None] == target[None, :], 1.0, 0.0)
    slope = (is_target - tl.exp(logits - normaliser[None, :])) * grad[None, :]
    return sums + tl.dot(slope.to(state.dtype), state, input_precision=PRECISION)


@triton.jit(do_not_specialize=["num_rows"])  # it differs from batch to batch
def _vector_gradients(
    states,
    vectors,
    vector_rows,
    starts,
    counts,
    columns,
    ends,
    width,
    normalisers,
    row_grads,
    parents,
    tile_ends,
    readers,
    by_node,
    num_rows,
    INDIRECT: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the gradients of the vectors of one tile of siblings per program.

    It adds the rows of their parent in large blocks first, then in small ones. With `INDIRECT` it also stores which
    vector each of these nodes reads.
    """
    parent = tl.load(parents + tl.program_id(0))
    if parent < num_rows:
        count, start = tl.load(counts + parent), tl.load(starts + parent)
        end = tl.load(ends + parent)
        column = (tl.load(tile_ends + parent) - 1 - tl.program_id(0)) * TILE + tl.arange(0, TILE)
        is_child = column < count
        node = start + column
        index = _index(vector_rows, node, is_child, INDIRECT)
        tile = _load(vectors, index, is_child, width, W).to(states.dtype.element_ty)
        sums = tl.zeros((TILE, W), dtype=tl.float32)
        last = parent + (end - parent) // TILE * TILE
        for begin in range(parent, last, TILE):
            sums = _add_rows(
                sums, tile, column, begin, end, states, columns, normalisers, row_grads, width, TILE, W, PRECISION
            )
        for begin in range(last, end, ROWS):
            sums = _add_rows(
                sums, tile, column, begin, end, states, columns, normalisers, row_grads, width, ROWS, W, PRECISION
            )
        _store(by_node, node, is_child, sums, width, W)
        if INDIRECT:
            tl.store(readers + node, index.to(tl.int32), mask=is_child)


@triton.jit
def _shared_sums(sorted_rows, nodes, by_node, out, num_nodes, num_vectors, width, BLOCK: tl.constexpr, W: tl.constexpr):
    """Add the gradients of the nodes that read the same vector, and store the sum as its gradient.

    `sorted_rows` contains the vectors that nodes read, in ascending order; nodes without a gradient are last, with
    number `num_vectors`. The first node of each vector adds those that follow it.
    """
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(sorted_rows + place, mask=place < num_nodes, other=num_vectors)
    before = tl.load(sorted_rows + place - 1, mask=(place > 0) & (place < num_nodes), other=-1)
    is_first = (row < num_vectors) & (row != before)
    sums = tl.zeros((BLOCK, W), dtype=tl.float32)
    has_more = is_first
    while tl.max(has_more.to(tl.int32), 0) > 0:
        node = tl.load(nodes + place, mask=has_more, other=0)
        sums += _load(by_node, node, has_more, width, W)
        place += 1
        after = tl.load(sorted_rows + place, mask=has_more & (place < num_nodes), other=num_vectors)
        has_more = has_more & (after == row)
    _store(out, row, is_first, sums, width, W)
