"""A balanced binary tree over vectors: near vectors share long paths.

Zhu et al., Learning Tree-based Deep Model for Recommender Systems, arXiv 1801.02294, section 3.5: 2-means at every
node, made even. All nodes of a depth are split at once.

Shapes: n vectors, D width, M depth, P nodes of a depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_POWER_ROUNDS = 4  # towards the first principal direction of each node, where 2-means starts


@dataclass(frozen=True, eq=False)
class BalancedTree:
    """Paths of vectors, and what sends a further vector down.

    bits        [n, M] int64, 0 or 1; M = ceil(log2 n), at least 1. No two rows have the same bits; a node that
                holds one row goes on with 0
    normals     M tensors [2 ** depth, D]: of the plane between the two halves of each node
    thresholds  M tensors [2 ** depth]: a vector x goes to child 1 where x . normal > threshold; inf where no row did
    """

    bits: Tensor
    normals: tuple[Tensor, ...]
    thresholds: tuple[Tensor, ...]

    def descend(self, vectors: Tensor) -> Tensor:
        """Bits [B, M] of `vectors [B, D]`; for those that the tree was built from, up to ties at a plane, `bits`."""
        node = torch.zeros(len(vectors), dtype=torch.int64)
        bits = []
        for normals, thresholds in zip(self.normals, self.thresholds, strict=True):
            bits.append(((vectors * normals[node]).sum(1) > thresholds[node]).long())
            node = 2 * node + bits[-1]
        return torch.stack(bits, dim=1)


def balanced_tree(vectors: Tensor, *, seed: int, iterations: int = 10) -> BalancedTree:
    """Splits `vectors [n, D]` in halves whose sizes differ by at most one, again and again, down to single rows.

    Each split is 2-means whose every assignment is even: rows sorted by how much nearer they are to one centre, and cut
    in the middle (equal rows in their order). The same seed gives the same tree.
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
    """The rows of all nodes of one depth."""

    def __init__(self, vectors: Tensor, node: Tensor, nodes: int) -> None:
        self.vectors, self.node = vectors, node
        self.counts = torch.bincount(node, minlength=nodes)
        self.starts = self.counts.cumsum(0) - self.counts

    def mean(self, rows: Tensor | None = None) -> Tensor:
        """Mean vectors of the nodes, [P, D]; of some rows only where given; 0 where there are none."""
        vectors, node = (self.vectors, self.node) if rows is None else (self.vectors[rows], self.node[rows])
        sums = self.vectors.new_zeros(len(self.counts), self.vectors.shape[1]).index_add_(0, node, vectors)
        return sums / torch.bincount(node, minlength=len(self.counts)).clamp(min=1)[:, None]

    def principal(self, generator: torch.Generator) -> Tensor:
        """About the first principal direction of each node, [P, D]."""
        centred = self.vectors - self.mean()[self.node]
        shape = (len(self.counts), self.vectors.shape[1])
        found = torch.randn(shape, generator=generator, dtype=self.vectors.dtype)
        for _ in range(_POWER_ROUNDS):
            along = (centred * found[self.node]).sum(1, keepdim=True)
            turned = torch.zeros_like(found).index_add_(0, self.node, along * centred)
            found = torch.where(turned.norm(dim=1, keepdim=True) > 0, torch.nn.functional.normalize(turned), found)
        return found

    def halves(self, along: Tensor) -> Tensor:
        """0 or 1 for each row, [n]: the upper half of its node's rows by `along [n]` is 1; the middle one is 0."""
        order = along.argsort(stable=True)
        order = order[self.node[order].argsort(stable=True)]
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        lower = (self.counts + 1) // 2
        return (place - self.starts[self.node] >= lower[self.node]).long()

    def between(self, side: Tensor) -> Tensor:
        """From the mean of the lower half to that of the upper one, [P, D]."""
        ones = side.bool()
        return self.mean(ones.nonzero()[:, 0]) - self.mean((~ones).nonzero()[:, 0])

    def middle(self, along: Tensor, side: Tensor) -> Tensor:
        """Half-way between the halves, [P]; inf where there is no upper half."""
        size = len(self.counts)
        low = along.new_full((size,), -torch.inf).scatter_reduce_(
            0, self.node, along.where(side == 0, -torch.inf), "amax"
        )
        high = along.new_full((size,), torch.inf).scatter_reduce_(
            0, self.node, along.where(side == 1, torch.inf), "amin"
        )
        middle = low + (high - low) / 2
        return torch.where(self.counts > 1, middle, torch.inf)
