"""Random inputs of the softmax over siblings."""

from __future__ import annotations

import torch
from torch import Tensor

from nextitem.ops.trie_softmax import ChildRanges


def problem(counts: list[int], num_rows: int, *, seed: int = 0, device: str = "cpu") -> tuple[ChildRanges, Tensor, int]:
    """Return the children of random parents that have some, their targets, and the number of nodes.

    Args:
        counts: number of children of each parent.
        num_rows: number of rows before those of parents without children are dropped.
        seed: seed of the parents and the targets.
        device: device of the results.

    """
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor(counts)
    starts = sizes.cumsum(0) - sizes
    parents = torch.randint(len(counts), (num_rows,), generator=generator)
    parents = parents[sizes[parents] > 0]
    offsets = (torch.rand(len(parents), generator=generator) * sizes[parents]).long()
    children = ChildRanges(starts[parents].to(device), sizes[parents].to(device))
    return children, children.starts + offsets.to(device), sum(counts)


def vectors_of(
    num_rows: int,
    num_vectors: int,
    *,
    width: int = 5,
    seed: int = 1,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Return normal hidden states [rows, width] and node vectors [vectors, width] that require gradients."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_rows, width, generator=generator, dtype=torch.float64)
    vectors = torch.randn(num_vectors, width, generator=generator, dtype=torch.float64)
    return tuple(part.to(device, dtype).requires_grad_() for part in (hidden, vectors))  # type: ignore[return-value]
