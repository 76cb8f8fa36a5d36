"""Accuracy metrics of recommended lists, one value per request.

Every metric takes `lists [B, K]` (item ids, best first, 0 is padding), `targets` (Jagged int64, distinct within a row)
and the cutoff `k`. It returns one value per request, [B] float64. The value of a request without targets is NaN: there
is nothing to judge its list by. Hits are counted on items. If a request has one target, recall equals hit rate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextitem.core.jagged import Jagged


def hits(lists: Tensor, targets: Jagged) -> Tensor:
    """Return whether the item in each slot is a target of its request, bool [B, K]; padding never is."""
    span = int(max(lists.max() if lists.numel() else 0, targets.values.max() if targets.values.numel() else 0)) + 1
    target_keys = targets.row_ids() * span + targets.values
    list_keys = torch.arange(lists.shape[0])[:, None] * span + lists
    return torch.isin(list_keys, target_keys) & (lists > 0)


def recall(lists: Tensor, targets: Jagged, k: int) -> Tensor:
    """Return the share of each request's targets that are among the first k items, [B] float64."""
    return hits(lists[:, :k], targets).sum(1) / _num_targets(targets)


def hit_rate(lists: Tensor, targets: Jagged, k: int) -> Tensor:
    """Return 1 for each request with a target among the first k items, else 0, [B] float64."""
    return _nan_without_targets(hits(lists[:, :k], targets).any(1).double(), targets)


def precision(lists: Tensor, targets: Jagged, k: int) -> Tensor:
    """Return the number of targets among the first k items over k, even if a list is shorter than k, [B] float64."""
    return _nan_without_targets(hits(lists[:, :k], targets).sum(1).double() / k, targets)


def ndcg(lists: Tensor, targets: Jagged, k: int) -> Tensor:
    """Return the discounted cumulative gain over that of the ideal list, [B] float64.

    Each target has gain 1, and slot s (from 1) the discount 1 / log2(s + 1). Jarvelin and Kekalainen 2002.
    """
    discount = 1 / torch.log2(torch.arange(2, k + 2, dtype=torch.float64))
    is_hit = hits(lists[:, :k], targets).double()
    gain = (is_hit * discount[: is_hit.shape[1]]).sum(1)
    ideal = torch.cat([discount.new_zeros(1), discount.cumsum(0)])[targets.lengths.clamp(max=k)]
    return _nan_without_targets(gain / ideal, targets)


def mrr(lists: Tensor, targets: Jagged, k: int) -> Tensor:
    """Return 1 / slot (from 1) of the first target, or 0 if none is among the first k items, [B] float64."""
    is_hit = hits(lists[:, :k], targets).double()
    slots = torch.arange(1, is_hit.shape[1] + 1, dtype=torch.float64)
    best = (is_hit / slots).max(1).values if is_hit.shape[1] else torch.zeros(len(is_hit), dtype=torch.float64)
    return _nan_without_targets(best, targets)


def average_precision(lists: Tensor, targets: Jagged, k: int) -> Tensor:
    """Return the sum of the precisions at the slots of the hits, over min(k, number of targets), [B] float64."""
    is_hit = hits(lists[:, :k], targets).double()
    slots = torch.arange(1, is_hit.shape[1] + 1, dtype=torch.float64)
    precision_at_hits = is_hit * is_hit.cumsum(1) / slots
    return precision_at_hits.sum(1) / _num_targets(targets).clamp(max=k)


def _num_targets(targets: Jagged) -> Tensor:
    """Return the number of targets of each request, NaN if it has none, [B] float64."""
    lengths = targets.lengths.double()
    return torch.where(lengths > 0, lengths, torch.nan)


def _nan_without_targets(values: Tensor, targets: Jagged) -> Tensor:
    """Return `values` [B] as float64, with NaN for each request without targets."""
    return torch.where(targets.lengths > 0, values.double(), torch.nan)
