"""Metrics beyond accuracy: coverage, concentration, novelty, diversity, serendipity, popularity bias.

`lists [B, K]` contains item ids, best first, 0 is padding. `popularity [N + 1]` counts the training events
of each item.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextitem.core.jagged import Jagged
from nextitem.evaluation.metrics.accuracy import hits

LISTS_AT_ONCE = 8192  # number of lists whose item vectors are in memory at the same time


def coverage(lists: Tensor, *, num_items: int) -> float:
    """Return the share of the catalogue that occurs in any list."""
    listed_items = torch.unique(lists[lists > 0])
    return int(listed_items.numel()) / num_items


def gini(lists: Tensor, *, num_items: int) -> float:
    """Return the Gini coefficient of exposure: 0 if all items are listed equally often, near 1 if only one is."""
    exposure = torch.bincount(lists[lists > 0], minlength=num_items + 1)[1:].double().sort().values
    total = exposure.sum()
    if not bool(total > 0):
        return 0.0
    rank = torch.arange(1, num_items + 1, dtype=torch.float64)
    return float((2 * (rank * exposure).sum() / (num_items * total)) - (num_items + 1) / num_items)


def novelty(lists: Tensor, popularity: Tensor) -> Tensor:
    """Return the mean self-information of each list's items in bits, [B] float64; NaN for an empty list.

    An item's probability is its share of the training events. One event is added to each item, so that items without
    events have a finite value. Vargas and Castells 2011, eq. 7 with log base 2.
    """
    counts = popularity.double() + 1
    counts[0] = 0
    bits = -torch.log2(counts / counts.sum())
    bits[0] = 0
    return _mean_over_list(bits[lists], lists)


def diversity(lists: Tensor, features: Tensor) -> Tensor:
    """Return the mean distance (1 - cosine) over the pairs of items of each list, [B] float64.

    The value of a list with fewer than two items is NaN. `features [N + 1, D]` are content vectors. If they are one-hot
    categories, the value is the share of pairs whose categories differ. Ziegler et al. 2005.
    """
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    unit[0] = 0
    parts = [_diversity(unit[rows], (rows > 0).sum(1).double()) for rows in torch.split(lists, LISTS_AT_ONCE)]
    return torch.cat(parts)


def _diversity(vectors: Tensor, num_items: Tensor) -> Tensor:
    """Return the diversity of each list, [R] float64.

    Args:
        vectors: unit vectors of the items of each list, zero for padding, [R, K, D].
        num_items: number of items of each list, [R].

    """
    # The sum over all pairs is the square of the sum: no K x K matrix is needed.
    sum_of_all = vectors.sum(1).double().pow(2).sum(1)
    sum_of_self = vectors.pow(2).sum(2).double().sum(1)
    num_pairs = num_items * (num_items - 1)
    return torch.where(num_pairs > 0, 1 - (sum_of_all - sum_of_self) / num_pairs.clamp(min=1), torch.nan)


def serendipity(lists: Tensor, targets: Jagged, popularity: Tensor, k: int) -> Tensor:
    """Return the number of unobvious hits among the first k items over k, [B] float64; NaN without targets.

    An unobvious hit is a target that is not among the k most popular items. Ge et al. 2010.
    """
    counts = popularity.clone()
    counts[0] = -1
    is_obvious = torch.zeros(len(popularity), dtype=torch.bool)
    is_obvious[counts.argsort(descending=True, stable=True)[:k]] = True
    top_items = lists[:, :k]
    share = (hits(top_items, targets) & ~is_obvious[top_items]).sum(1).double() / k
    return torch.where(targets.lengths > 0, share, torch.nan)


def popularity_bias(lists: Tensor, histories: Jagged, popularity: Tensor) -> Tensor:
    """Return the mean popularity of each list over that of the request's history, [B] float64.

    1 means no bias. The value is NaN without a history. Abdollahpouri et al. 2019 (popularity lift + 1).
    """
    counts = popularity.double()
    list_mean = _mean_over_list(counts[lists], lists)
    sums = torch.zeros(histories.num_rows, dtype=torch.float64)
    sums.index_add_(0, histories.row_ids(), counts[histories.values])
    history_mean = sums / histories.lengths
    return torch.where(history_mean > 0, list_mean / history_mean, torch.nan)


def _mean_over_list(values: Tensor, lists: Tensor) -> Tensor:
    """Return the mean of `values [B, K]` over the items of each list, [B] float64; NaN for an empty list."""
    is_item = (lists > 0).double()
    num_items = is_item.sum(1)
    return torch.where(num_items > 0, (values * is_item).sum(1) / num_items.clamp(min=1), torch.nan)
