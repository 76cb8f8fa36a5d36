"""Codes of items from balanced clusters of their vectors: clusters, clusters within them, and items within the last.

Every item has codes of its own, and the same number of items (or of events) lies under every prefix of a length. So a
softmax over the children of a prefix costs about the same everywhere. A model can cluster its own item vectors in this
way, to replace the codes with which it started.

Shapes: N items, D width, M levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nextitem.nn.quantisation.balanced_kmeans import balanced_kmeans

Balance = Literal["size", "exposure", "plain"]

_MAX_ITEMS_OF_TWO_LEVELS = 200_000  # above, a level of the square root of the catalogue would be a large softmax


def equal_codebook_sizes(num_items: int) -> tuple[int, ...]:
    """Return equal codebook sizes that suffice for a catalogue: two levels up to 200,000 items, three above."""
    levels = 2 if num_items <= _MAX_ITEMS_OF_TWO_LEVELS else 3
    size = math.floor(num_items ** (1 / levels))
    while size**levels < num_items:
        size += 1
    return (size,) * levels


def cluster_codes(
    vectors: Tensor,
    codebook_sizes: Sequence[int],
    *,
    seed: int,
    balance: Balance = "size",
    weights: Tensor | None = None,
    iterations: int = 20,
) -> Tensor:
    """Return codes [N, M] int64 of items, which are all different; deterministic for a seed.

    The first level splits all items into `codebook_sizes[0]` clusters of near vectors, the second each of them into
    `codebook_sizes[1]`, and so on. The last level numbers the items of a cluster from 0, those with larger weights
    first, equal ones in their order. Used codes of a prefix are numbered from 0 without gaps.

    Args:
        vectors: [N, D], one for each item; NaN is a missing entry.
        codebook_sizes: number of codes of each level (M numbers).
        seed: seed of k-means.
        balance: "size": under equal prefixes are equal numbers of items, up to one at each split. "exposure": equal
            sums of weights. "plain": plain k-means. With the latter two a cluster may have more items than
            `codebook_sizes[-1]`, and then the last codes exceed it.
        weights: [N] positive numbers, such as counts of events; None: 1 each.
        iterations: maximum number of rounds of each k-means.

    Raises:
        ValueError: the codebook sizes have fewer codes than there are items, with the balance "size".

    """
    count = len(vectors)
    if balance == "size" and math.prod(codebook_sizes) < count:
        raise ValueError(
            f"codebook_sizes = {tuple(codebook_sizes)} has {math.prod(codebook_sizes):,} codes for {count:,} items; "
            f"use larger sizes, such as {equal_codebook_sizes(count)}"
        )
    item_weights = torch.ones(count, dtype=torch.float64) if weights is None else weights.double()
    group, columns = torch.zeros(count, dtype=torch.int64), []
    for level, size in enumerate(codebook_sizes[:-1]):
        codes = torch.zeros(count, dtype=torch.int64)
        sizes = torch.bincount(group).tolist()
        for number, members in enumerate(torch.split(group.argsort(stable=True), sizes)):
            clusters = balanced_kmeans(
                vectors[members],
                size,
                seed=int(np.random.SeedSequence((seed, level, number)).generate_state(1)[0]),
                weights=item_weights[members] if balance == "exposure" else None,
                is_balanced=balance != "plain",
                iterations=iterations,
            )
            codes[members] = clusters.unique(return_inverse=True)[1]
        columns.append(codes)
        group = (group * size + codes).unique(return_inverse=True)[1]
    order = item_weights.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    counts = torch.bincount(group)
    rank = torch.empty_like(group)
    rank[order] = torch.arange(count) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return torch.stack([*columns, rank], dim=1)
