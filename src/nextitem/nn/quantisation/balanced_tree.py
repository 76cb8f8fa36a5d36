"""Balanced binary tree over vectors: near vectors share long paths.

Zhu et al., Learning Tree-based Deep Model for Recommender Systems, arXiv 1801.02294, section 3.5: 2-means at every
node, with halves of equal size. All nodes of a depth are split at once.

Shapes: n vectors, D width, M depth, P nodes of a depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_POWER_ROUNDS = 4  # power iterations for the first principal direction of each node, with which 2-means starts


@dataclass(frozen=True, eq=False)
class BalancedTree:
    """Paths of vectors in a balanced tree, and the planes that send other vectors down the tree.

    Attributes:
        bits: [n, M] int64, 0 or 1; M = ceil(log2 n), at least 1. No two rows have the same bits; the path continues
            with 0 below a node that contains one row.
        normals: M tensors [2 ** depth, D]: normal of the plane between the two halves of each node.
        thresholds: M tensors [2 ** depth]: a vector x goes to child 1 if x . normal > threshold; inf if no row did.

    """

    bits: Tensor
    normals: tuple[Tensor, ...]
    thresholds: tuple[Tensor, ...]

    def descend(self, vectors: Tensor) -> Tensor:
        """Return the paths [B, M] of `vectors [B, D]` as bits.

        The vectors that the tree was built from get their `bits` again, except for ties at a plane.
        """
        node = torch.zeros(len(vectors), dtype=torch.int64)
        bits = []
        for normals, thresholds in zip(self.normals, self.thresholds, strict=True):
            bits.append(((vectors * normals[node]).sum(1) > thresholds[node]).long())
            node = 2 * node + bits[-1]
        return torch.stack(bits, dim=1)


def balanced_tree(vectors: Tensor, *, seed: int, iterations: int = 10) -> BalancedTree:
    """Build a balanced tree: split `vectors [n, D]` recursively into halves, down to single rows.

    The sizes of the halves differ by at most one. Each split is a 2-means whose every assignment is balanced: rows are
    sorted by how much nearer they are to one centre, and cut in the middle (equal rows in their order). There are
    `iterations` such assignments before the final one. The same seed returns the same tree.
    """
    count = len(vectors)
    depth = max(1, (count - 1).bit_length())
    generator = torch.Generator().manual_seed(seed)
    node = torch.zeros(count, dtype=torch.int64)
    bits, all_normals, all_thresholds = [], [], []
    for level in range(depth):
        split = _Split(vectors, node, 2**level)
        normals = split.principal(generator)
        for _ in range(iterations):
            side = split.halves((vectors * normals[node]).sum(1))
            normals = split.between(side)
        along = (vectors * normals[node]).sum(1)
        side = split.halves(along)
        all_normals.append(normals)
        all_thresholds.append(split.middle(along, side))
        bits.append(side)
        node = 2 * node + side
    return BalancedTree(torch.stack(bits, dim=1), tuple(all_normals), tuple(all_thresholds))


class _Split:
    """Rows of all nodes of one depth, and the steps of splitting the nodes in halves.

    `node [n]` is the node of each row.
    """

    def __init__(self, vectors: Tensor, node: Tensor, num_nodes: int) -> None:
        self.vectors, self.node = vectors, node
        self.counts = torch.bincount(node, minlength=num_nodes)
        self.starts = self.counts.cumsum(0) - self.counts

    def mean(self, rows: Tensor | None = None) -> Tensor:
        """Return the mean vector of each node, [P, D]; 0 for a node without rows.

        If `rows` is not None, only these rows count.
        """
        vectors, node = (self.vectors, self.node) if rows is None else (self.vectors[rows], self.node[rows])
        sums = self.vectors.new_zeros(len(self.counts), self.vectors.shape[1]).index_add_(0, node, vectors)
        return sums / torch.bincount(node, minlength=len(self.counts)).clamp(min=1)[:, None]

    def principal(self, generator: torch.Generator) -> Tensor:
        """Return the approximate first principal direction of each node, [P, D], by power iteration."""
        centred = self.vectors - self.mean()[self.node]
        shape = (len(self.counts), self.vectors.shape[1])
        directions = torch.randn(shape, generator=generator, dtype=self.vectors.dtype)
        for _ in range(_POWER_ROUNDS):
            along = (centred * directions[self.node]).sum(1, keepdim=True)
            products = torch.zeros_like(directions).index_add_(0, self.node, along * centred)
            has_length = products.norm(dim=1, keepdim=True) > 0
            directions = torch.where(has_length, torch.nn.functional.normalize(products), directions)
        return directions

    def halves(self, along: Tensor) -> Tensor:
        """Return the half of each row within its node, [n]: 1 for the upper half by `along [n]`, else 0.

        The middle row of an odd number of rows is in half 0.
        """
        order = along.argsort(stable=True)
        order = order[self.node[order].argsort(stable=True)]
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        lower = (self.counts + 1) // 2
        return (place - self.starts[self.node] >= lower[self.node]).long()

    def between(self, side: Tensor) -> Tensor:
        """Return the vector from the mean of each node's lower half to the mean of its upper half, [P, D]."""
        is_upper = side.bool()
        return self.mean(is_upper.nonzero()[:, 0]) - self.mean((~is_upper).nonzero()[:, 0])

    def middle(self, along: Tensor, side: Tensor) -> Tensor:
        """Return the value of `along` half-way between the two halves of each node, [P]; inf without an upper half."""
        size = len(self.counts)
        low = along.new_full((size,), -torch.inf).scatter_reduce_(
            0, self.node, along.where(side == 0, -torch.inf), "amax"
        )
        high = along.new_full((size,), torch.inf).scatter_reduce_(
            0, self.node, along.where(side == 1, torch.inf), "amin"
        )
        middle = low + (high - low) / 2
        return torch.where(self.counts > 1, middle, torch.inf)
