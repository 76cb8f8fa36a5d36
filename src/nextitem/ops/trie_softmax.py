"""Softmax over the children of given nodes of a trie: a vector for every node, and only siblings compete.

The children of a node are neighbours in the order of nodes, so each row names a range of nodes. Rows of one parent are
multiplied with its children's vectors in one product; ranges of similar length share a batched product. A parent with a
single child has probability 1 and costs nothing. The cost depends on the siblings of the targets, not on the number of
nodes.

Shapes: R rows, T targets, D width, V nodes, X rows of the vectors, C children of a row. Of a group: P parts, G rows and
K children of each part.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Reading the vectors of a child costs about as much as this many of its products.
_READ_COST = 8
# Up to this number of logits, all children are read once for each row: the division into groups would take longer.
_FEW_LOGITS = 2**15
# Widest vectors of which the fused kernels hold a tile in the memory of a GPU's core.
_FUSED_WIDTH = 512


@dataclass(frozen=True, eq=False)
class ChildRanges:
    """The children of R rows: row r has the nodes starts[r] .. starts[r] + counts[r] - 1; both are int64 [R].

    Rows with the same start must have the same count; ranges with different starts must not overlap, as different
    parents have different children. A count may be 0.
    """

    starts: Tensor
    counts: Tensor

    @cached_property
    def max_count(self) -> int:
        """Largest number of children of a row (C)."""
        return int(self.counts.max()) if len(self.counts) else 0

    @cached_property
    def competing(self) -> list[Group]:
        """The rows with at least two children, in groups."""
        return self._groups(2)

    @cached_property
    def all_rows(self) -> list[Group]:
        """The rows with at least one child, in groups."""
        return self._groups(1)

    def _groups(self, min_count: int) -> list[Group]:
        rows = (self.counts >= min_count).nonzero()[:, 0]
        order = rows[self.starts[rows].argsort(stable=True)]
        starts, num_rows = torch.unique_consecutive(self.starts[order], return_counts=True)
        first_rows = num_rows.cumsum(0) - num_rows
        counts = self.counts[order[first_rows]]
        sizes = torch.ceil(torch.log2(counts.double())).long()  # counts in (2^(i - 1), 2^i] have size i
        groups = []
        for size in torch.unique(sizes).tolist():
            parents = (sizes == size).nonzero()[:, 0]
            of_parents = starts[parents], counts[parents], first_rows[parents], num_rows[parents]
            groups.append(_group(order, *of_parents, padding=len(self.starts)))
        return groups


@dataclass(frozen=True, eq=False)
class Group:
    """One batched product of P parts; each has up to G rows of one parent.

    Attributes:
        rows: [P, G] int64, numbers of rows; R for padding.
        starts: [P] int64, the first child of each part's parent.
        counts: [P] int64, the number of its children.
        width: largest number of children (K).
        narrowest: smallest number of children.

    """

    rows: Tensor
    starts: Tensor
    counts: Tensor
    width: int
    narrowest: int

    @cached_property
    def children(self) -> Tensor:
        """The nodes, [P, K] int64; a parent with fewer than K children repeats its last one."""
        numbers = torch.arange(self.width, device=self.starts.device)
        return self.starts[:, None] + torch.minimum(numbers, self.counts[:, None] - 1)

    def mask_(self, values: Tensor, fill: float) -> Tensor:
        """Write `fill` into the entries of `values [P, G, K]` that belong to repetitions, in place, and return them."""
        if self.narrowest < self.width:
            numbers = torch.arange(self.narrowest, self.width, device=self.starts.device)
            is_repeated = (numbers >= self.counts[:, None])[:, None]
            values[:, :, self.narrowest :].masked_fill_(is_repeated, fill)
        return values

    def read(self, table: Tensor, vector_rows: Tensor | None) -> Tensor:
        """Return the vectors of the children, [P, K, D]."""
        return F.embedding(self.children if vector_rows is None else vector_rows[self.children], table)

    def logits(self, hidden: Tensor, vectors: Tensor, vector_rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits [P, G, K] of padded rows, -inf for repetitions, and the two factors of the product.

        `hidden` is [R + 1, D], with the padding row at its end.
        """
        left, right = F.embedding(self.rows, hidden), self.read(vectors, vector_rows)
        return self.mask_(left @ right.transpose(1, 2), -torch.inf), left, right

    def add_gradient_(self, grad: Tensor, values: Tensor, vector_rows: Tensor | None) -> None:
        """Add `values [P, K, D]` to the rows of the children's vectors in `grad [X, D]`, in place."""
        nodes = self.children if vector_rows is None else vector_rows[self.children]
        grad.index_add_(0, nodes.flatten(), values.flatten(0, 1))


def _group(
    order: Tensor, starts: Tensor, counts: Tensor, first_rows: Tensor, num_rows: Tensor, *, padding: int
) -> Group:
    """Return the group of some parents, whose rows are `num_rows` entries of `order` from `first_rows` on."""
    highest = int(num_rows.max())
    sizes = [2**power for power in range((highest - 1).bit_length() + 1)]
    costs = [int((-(-num_rows // size)).sum()) * (size + _READ_COST) for size in sizes]
    size = min(sizes[costs.index(min(costs))], highest)
    num_parts = -(-num_rows // size)
    parent = torch.arange(len(starts), device=starts.device).repeat_interleave(num_parts)
    part = torch.arange(len(parent), device=starts.device) - (num_parts.cumsum(0) - num_parts)[parent]
    place = part[:, None] * size + torch.arange(size, device=starts.device)
    is_row = place < num_rows[parent][:, None]
    rows = order[torch.where(is_row, first_rows[parent][:, None] + place, 0)].masked_fill(~is_row, padding)
    return Group(rows, starts[parent], counts[parent], int(counts.max()), int(counts.min()))


def child_logits(
    hidden: Tensor, vectors: Tensor, children: ChildRanges, *, vector_rows: Tensor | None = None
) -> Tensor:
    """Return the inner products of each row with the vectors of its children, [R, C]; -inf for padding.

    Args:
        hidden: hidden states [R, D].
        vectors: node vectors [X, D].
        children: the children of each row.
        vector_rows: [V] int64, the row of `vectors` of each node; None: node v has row v.

    """
    out: Tensor = _ChildLogits.apply(hidden, vectors, children, vector_rows)  # type: ignore[no-untyped-call]
    return out


def trie_softmax(
    hidden: Tensor,
    vectors: Tensor,
    children: ChildRanges,
    targets: Tensor,
    *,
    rows: Tensor | None = None,
    vector_rows: Tensor | None = None,
) -> Tensor:
    """Return log softmax(hidden . children)[target] of each target, [T]; differentiable once.

    On a GPU with Triton installed, fused kernels store no logits at all (ops/triton/trie_softmax.py); float64 and
    vectors wider than 512 always use the groups.

    Args:
        hidden: hidden states [R, D].
        vectors: node vectors [X, D].
        children: the children of each row, among which its targets compete.
        targets: [T] int64, each a child of its row.
        rows: [T] int64, the row of each target, so that targets can share a softmax; None: target r has row r.
        vector_rows: [V] int64, the row of `vectors` of each node; None: node v has row v.

    """
    is_fusible = hidden.is_cuda and hidden.dtype != torch.float64 and hidden.shape[1] <= _FUSED_WIDTH
    if is_fusible and find_spec("triton") is not None:
        from nextitem.ops.triton.trie_softmax import FusedTrieSoftmax

        if rows is not None:
            hidden, children = hidden[rows], ChildRanges(children.starts[rows], children.counts[rows])
        fused: Tensor = FusedTrieSoftmax.apply(hidden, vectors, children, targets, vector_rows)  # type: ignore[no-untyped-call]
        return fused
    if rows is None:
        rows = torch.arange(len(targets), device=targets.device)
    out: Tensor = _TrieSoftmax.apply(hidden, vectors, children, targets, rows, vector_rows)  # type: ignore[no-untyped-call]
    return out


def trie_softmax_reference(
    hidden: Tensor,
    vectors: Tensor,
    children: ChildRanges,
    targets: Tensor,
    *,
    rows: Tensor | None = None,
    vector_rows: Tensor | None = None,
) -> Tensor:
    """Return what `trie_softmax` returns, computed target by target."""
    out = []
    starts, counts = children.starts.tolist(), children.counts.tolist()
    for row, target in zip(range(len(targets)) if rows is None else rows.tolist(), targets.tolist(), strict=True):
        nodes = torch.arange(starts[row], starts[row] + counts[row])
        logits = vectors[nodes if vector_rows is None else vector_rows[nodes]] @ hidden[row]
        out.append(logits.log_softmax(0)[target - starts[row]])
    return torch.stack(out) if out else hidden.sum(1)[:0]


class _ChildLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, vectors: Tensor, children: ChildRanges, vector_rows: Tensor | None) -> Tensor:
        ctx.save_for_backward(hidden, vectors)
        ctx.children, ctx.vector_rows = children, vector_rows
        if len(hidden) * children.max_count <= _FEW_LOGITS:
            numbers = torch.arange(children.max_count, device=hidden.device)
            is_padding = numbers >= children.counts[:, None]
            nodes = (children.starts[:, None] + numbers).masked_fill_(is_padding, 0)
            read = F.embedding(nodes if vector_rows is None else vector_rows[nodes], vectors)
            return (read @ hidden[..., None])[..., 0].masked_fill_(is_padding, -torch.inf)
        padded = F.pad(hidden, (0, 0, 0, 1))
        out = hidden.new_full((len(hidden) + 1, children.max_count), -torch.inf)
        for group in children.all_rows:
            out[group.rows, : group.width] = group.logits(padded, vectors, vector_rows)[0]
        return out[:-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden, vectors = ctx.saved_tensors
        padded, padded_grad = F.pad(hidden, (0, 0, 0, 1)), F.pad(grad, (0, 0, 0, 1))
        grad_hidden, grad_vectors = torch.zeros_like(padded), torch.zeros_like(vectors)
        for group in ctx.children.all_rows:
            grad_logits = group.mask_(padded_grad[group.rows, : group.width], 0)
            grad_hidden[group.rows] = grad_logits @ group.read(vectors, ctx.vector_rows)
            group.add_gradient_(grad_vectors, grad_logits.transpose(1, 2) @ padded[group.rows], ctx.vector_rows)
        return grad_hidden[:-1], grad_vectors, None, None


class _TrieSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        vectors: Tensor,
        children: ChildRanges,
        targets: Tensor,
        rows: Tensor,
        vector_rows: Tensor | None,
    ) -> Tensor:
        padded = F.pad(hidden, (0, 0, 0, 1))
        out = hidden.new_zeros(len(targets))
        columns = targets - children.starts[rows]
        saved = []
        for group in children.competing:
            logits, left, right = group.logits(padded, vectors, vector_rows)
            slots = rows.new_full((len(padded),), -1)  # of each row in the group
            slots[group.rows.flatten()] = torch.arange(group.rows.numel(), device=rows.device)
            slots_T = slots[rows]
            picks = (slots_T >= 0).nonzero()[:, 0]
            places = slots_T[picks] * group.width + columns[picks]
            log_probs = logits.log_softmax(2)
            out[picks] = log_probs.flatten()[places]
            if any(ctx.needs_input_grad[:2]):
                saved += [log_probs.exp_(), left, right, picks, places]
        ctx.save_for_backward(hidden, vectors, rows, *saved)
        ctx.children, ctx.vector_rows = children, vector_rows
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        hidden, vectors, rows, *saved = ctx.saved_tensors
        grad_of_rows = grad.new_zeros(len(hidden) + 1).index_add_(0, rows, grad)
        grad_hidden, grad_vectors = hidden.new_zeros(len(hidden) + 1, hidden.shape[1]), torch.zeros_like(vectors)
        for number, group in enumerate(ctx.children.competing):
            probs, left, right, picks, places = saved[5 * number : 5 * number + 5]
            # Of a log-probability with respect to the logits: 1 at the target, minus the softmax.
            grad_logits = probs * -grad_of_rows[group.rows][..., None]
            grad_logits.view(-1).index_add_(0, places, grad[picks])
            grad_hidden.index_copy_(0, group.rows.flatten(), (grad_logits @ right).flatten(0, 1))
            group.add_gradient_(grad_vectors, grad_logits.transpose(1, 2) @ left, ctx.vector_rows)
        return grad_hidden[:-1], grad_vectors, None, None, None, None
