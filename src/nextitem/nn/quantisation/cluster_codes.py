"""Codes of items from balanced clusters of their vectors: clusters, clusters within them, and items within the last.

Every item has codes of its own, and the same number of items (or of events) lies under every prefix of a length. So a
softmax over the children of a prefix costs about the same everywhere. A model can cluster its own item vectors in this
way, to replace the codes with which it started (`relearned_codes`).

Shapes: N items, D width, M levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nextitem.core.identifiers import IdentifierTable
from nextitem.nn.quantisation.balanced_kmeans import balanced_kmeans, capped_kmeans

Balance = Literal["size", "exposure", "exposure-capped", "plain"]

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
    cap: float = 1.05,
    iterations: int = 20,
    prefixes: Tensor | None = None,
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
            sums of weights. "exposure-capped": plain k-means with a repair, such that no cluster weighs more than `cap`
            times the mean of its siblings, if items are light enough. "plain": plain k-means. With the latter three a
            cluster may have more items than `codebook_sizes[-1]`, and then the last codes exceed it.
        weights: [N] positive numbers, such as counts of events; None: 1 each.
        cap: largest weight of a cluster as a multiple of the mean, for "exposure-capped".
        iterations: maximum number of rounds of each k-means.
        prefixes: [N, P] codes that precede the others, such as the number of a category: items are clustered among
            those with the same prefix, and the result is [N, P + M]. None: no such codes.

    Raises:
        ValueError: the codebook sizes have fewer codes than there are items under a prefix, with the balance "size".

    """
    count = len(vectors)
    group, columns = torch.zeros(count, dtype=torch.int64), []
    if prefixes is not None:
        columns = list(prefixes.long().unbind(1))
        group = prefixes.unique(dim=0, return_inverse=True)[1]
    largest = int(torch.bincount(group).max())
    if balance == "size" and math.prod(codebook_sizes) < largest:
        where = "" if prefixes is None else " with equal first codes"
        raise ValueError(
            f"codebook_sizes = {tuple(codebook_sizes)} has {math.prod(codebook_sizes):,} codes for {largest:,} items"
            f"{where}; use larger sizes, such as {equal_codebook_sizes(largest)}"
        )
    item_weights = torch.ones(count, dtype=torch.float64) if weights is None else weights.double()
    for level, size in enumerate(codebook_sizes[:-1]):
        codes = torch.zeros(count, dtype=torch.int64)
        sizes = torch.bincount(group).tolist()
        for number, members in enumerate(torch.split(group.argsort(stable=True), sizes)):
            options = {"seed": int(np.random.SeedSequence((seed, level, number)).generate_state(1)[0])}
            options["iterations"] = iterations
            part, part_weights = vectors[members], item_weights[members]
            if balance == "exposure-capped":
                clusters = capped_kmeans(part, size, weights=part_weights, cap=cap, **options)
            else:
                weighted = part_weights if balance == "exposure" else None
                clusters = balanced_kmeans(part, size, weights=weighted, is_balanced=balance != "plain", **options)
            codes[members] = clusters.unique(return_inverse=True)[1]
        columns.append(codes)
        group = (group * size + codes).unique(return_inverse=True)[1]
    order = item_weights.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    counts = torch.bincount(group)
    rank = torch.empty_like(group)
    rank[order] = torch.arange(count) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return torch.stack([*columns, rank], dim=1)


def relearned_codes(
    vectors: Tensor, popularity: Tensor, former: IdentifierTable, *, num_kept: int, seed: int
) -> Tensor:
    """Return codes [N, M] by which a model's trained item vectors replace its former ones (TDM, section 3.5).

    Clusters have equal sizes. An item without a training event has learned no vector, so it takes a place that the
    others leave.

    Args:
        vectors: trained vectors of the items, [N, D]; popularity is removed from them first (`without_popularity`).
        popularity: number of training events of each item, [N].
        former: former codes of the items; the codebook sizes stay.
        num_kept: number of first codes that stay, such as that of an attribute.
        seed: seed of k-means.

    """
    vectors, popularity = vectors.detach().cpu(), popularity.cpu()
    has_events = popularity > 0
    tastes = vectors.new_full(vectors.shape, torch.nan)
    if bool(has_events.any()):
        tastes[has_events] = without_popularity(vectors[has_events], popularity[has_events])
    return cluster_codes(
        tastes,
        former.codebook_sizes[num_kept:],
        seed=seed,
        weights=popularity.clamp(min=1),
        prefixes=former.codes[1:, :num_kept] if num_kept else None,
    )


def without_popularity(vectors: Tensor, popularity: Tensor) -> Tensor:
    """Return trained item vectors [N, D] without the part that log `popularity [N]` and its square explain.

    Least squares determine that part, which is the largest one. Clusters that separate frequent items from rare ones
    separate no tastes.
    """
    log_popularity = torch.log1p(popularity.to(vectors.dtype))
    predictors = torch.stack([torch.ones_like(log_popularity), log_popularity, log_popularity.square()], dim=1)
    explained: Tensor = predictors @ torch.linalg.lstsq(predictors, vectors).solution
    return vectors - explained
