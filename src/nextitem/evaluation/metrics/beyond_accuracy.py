"""What lists are like beside being right: coverage, concentration, novelty, diversity, serendipity, popularity bias.

`lists [B, K]` are item ids best first, 0 is padding; `popularity [N + 1]` counts training events.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextitem.core.jagged import Jagged
from nextitem.evaluation.metrics.accuracy import hits

AT_ONCE = 8192  # lists whose vectors are held at a time


def coverage(lists: Tensor, *, num_items: int) -> float:
    """Share of the catalogue that is in any list."""
    shown = torch.unique(lists[lists > 0])
    return int(shown.numel()) / num_items


def gini(lists: Tensor, *, num_items: int) -> float:
    """Gini coefficient of the items' exposures: 0 where all are shown equally often, near 1 where one is."""
    exposure = torch.bincount(lists[lists > 0], minlength=num_items + 1)[1:].double().sort().values
    total = exposure.sum()
    if not bool(total > 0):
        return 0.0
    rank = torch.arange(1, num_items + 1, dtype=torch.float64)
    return float((2 * (rank * exposure).sum() / (num_items * total)) - (num_items + 1) / num_items)


def novelty(lists: Tensor, popularity: Tensor) -> Tensor:
    """Mean self-information of a list's items in bits, [B] float64; NaN for an empty list.

    An item's probability is its share of training events, with one event added to each item so that unseen ones
    have a finite value. Vargas and Castells 2011, eq. 7 with log base 2.
    """
    counts = popularity.double() + 1
    counts[0] = 0
    bits = -torch.log2(counts / counts.sum())
    bits[0] = 0
    return _mean_over_list(bits[lists], lists)


def diversity(lists: Tensor, features: Tensor) -> Tensor:
    """Mean distance (1 - cosine) of a list's pairs of items, [B] float64; NaN with fewer than two items.

    `features [N + 1, D]` are content vectors, or one-hot categories: then it is the share of pairs of different
    categories. Ziegler et al. 2005.
    """
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    unit[0] = 0
    parts = [_diversity(unit[rows], (rows > 0).sum(1).double()) for rows in torch.split(lists, AT_ONCE)]
    return torch.cat(parts)


def _diversity(vectors: Tensor, count: Tensor) -> Tensor:
    """Of `vectors [R, K, D]`, zero where there is no item, of which there are `count [R]`."""
    # The sum over all pairs is the square of the sum: no K x K matrix is needed.
    sum_of_all = vectors.sum(1).double().pow(2).sum(1)
    sum_of_self = vectors.pow(2).sum(2).double().sum(1)
    pairs = count * (count - 1)
    return torch.where(pairs > 0, 1 - (sum_of_all - sum_of_self) / pairs.clamp(min=1), torch.nan)


def serendipity(lists: Tensor, targets: Jagged, popularity: Tensor, k: int) -> Tensor:
    """Share of k that are targets and are not among the k most popular items, [B] float64. Ge et al. 2010."""
    common = popularity.clone()
    common[0] = -1
    obvious = torch.zeros(len(popularity), dtype=torch.bool)
    obvious[common.argsort(descending=True, stable=True)[:k]] = True
    shown = lists[:, :k]
    found = (hits(shown, targets) & ~obvious[shown]).sum(1).double() / k
    return torch.where(targets.lengths > 0, found, torch.nan)


def popularity_bias(lists: Tensor, histories: Jagged, popularity: Tensor) -> Tensor:
    """Mean popularity of a list over that of the history it answers, [B] float64; 1 is no bias, NaN: no history.

    Abdollahpouri et al. 2019 (popularity lift + 1).
    """
    counts = popularity.double()
    recommended = _mean_over_list(counts[lists], lists)
    sums = torch.zeros(histories.num_rows, dtype=torch.float64)
    sums.index_add_(0, histories.row_ids(), counts[histories.values])
    past = sums / histories.lengths
    return torch.where(past > 0, recommended / past, torch.nan)


def _mean_over_list(values: Tensor, lists: Tensor) -> Tensor:
    real = (lists > 0).double()
    count = real.sum(1)
    return torch.where(count > 0, (values * real).sum(1) / count.clamp(min=1), torch.nan)
