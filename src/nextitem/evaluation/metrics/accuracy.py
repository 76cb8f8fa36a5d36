"""Accuracy of lists, request by request.

Every function takes `lists [B, K]` (item ids best first, 0 is padding), `targets` (Jagged int64, distinct within a row)
and `k`, and returns one value a request, [B] float64. A request without targets gives NaN: it has no answer to be
judged. Hits are counted on items. Where a request has one target, recall equals hit rate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextitem.core.jagged import Jagged


def hits(lists: Tensor, targets: Jagged) -> Tensor:
    """bool [B, K]: is the item at this place a target of its request? Padding never is."""
    span = int(max(lists.max() if lists.numel() else 0, targets.values.max() if targets.values.numel() else 0)) + 1
    wanted = targets.row_ids() * span + targets.values
    places = torch.arange(lists.shape[0])[:, None] * span + lists
    return torch.isin(places, wanted) & (lists > 0)


def recall(lists: Tensor, targets: Jagged, k: int) -> Tensor:
    """Share of the request's targets that are among the first k."""
    return hits(lists[:, :k], targets).sum(1) / _count(targets)


def hit_rate(lists: Tensor, targets: Jagged, k: int) -> Tensor:
    """1 where any target is among the first k."""
    return _where_asked(hits(lists[:, :k], targets).any(1).double(), targets)


def precision(lists: Tensor, targets: Jagged, k: int) -> Tensor:
    """Share of k that are targets; a list shorter than k is not excused."""
    return _where_asked(hits(lists[:, :k], targets).sum(1).double() / k, targets)


def ndcg(lists: Tensor, targets: Jagged, k: int) -> Tensor:
    """Discounted cumulative gain over that of the ideal list, gain 1 a target, discount 1 / log2(place + 1).

    Jarvelin and Kekalainen 2002.
    """
    discount = 1 / torch.log2(torch.arange(2, k + 2, dtype=torch.float64))
    found = hits(lists[:, :k], targets).double()
    gain = (found * discount[: found.shape[1]]).sum(1)
    ideal = torch.cat([discount.new_zeros(1), discount.cumsum(0)])[targets.lengths.clamp(max=k)]
    return _where_asked(gain / ideal, targets)


def mrr(lists: Tensor, targets: Jagged, k: int) -> Tensor:
    """1 / place of the first target; 0 where none is among the first k."""
    found = hits(lists[:, :k], targets).double()
    places = torch.arange(1, found.shape[1] + 1, dtype=torch.float64)
    best = (found / places).max(1).values if found.shape[1] else torch.zeros(len(found), dtype=torch.float64)
    return _where_asked(best, targets)


def average_precision(lists: Tensor, targets: Jagged, k: int) -> Tensor:
    """Mean over the targets of the precision at their place, over min(k, number of targets)."""
    found = hits(lists[:, :k], targets).double()
    places = torch.arange(1, found.shape[1] + 1, dtype=torch.float64)
    at_hit = found * found.cumsum(1) / places
    return at_hit.sum(1) / _count(targets).clamp(max=k)


def _count(targets: Jagged) -> Tensor:
    """Number of targets, [B] float64, NaN for none."""
    lengths = targets.lengths.double()
    return torch.where(lengths > 0, lengths, torch.nan)


def _where_asked(values: Tensor, targets: Jagged) -> Tensor:
    return torch.where(targets.lengths > 0, values.double(), torch.nan)
