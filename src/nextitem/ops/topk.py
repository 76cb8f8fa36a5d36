"""Top-k with a defined rule for ties: the smaller index wins."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_ENTRIES = 2**22  # entries of tied rows that are processed at a time: some tens of MiB


def stable_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return values and indices of the k largest entries of each row; ties go to the smaller index.

    `scores [B, N]` may contain -inf, but no NaN; k <= N. Returns values [B, k] in descending order and indices [B, k]
    int64. The entries are selected by torch.topk. If the k-th entry of a row has ties beyond the first k, the row is
    read once more, for the smallest indices of the tied entries. No row is sorted in full.
    """
    count = min(k + 1, scores.shape[1])
    values, indices = torch.topk(scores, count, dim=1)
    by_index = indices.argsort(dim=1)
    values, indices = values.gather(1, by_index), indices.gather(1, by_index)
    values, order = values.sort(dim=1, descending=True, stable=True)
    indices = indices.gather(1, order)
    if count > k:
        tied = values[:, k - 1] == values[:, k]
        values, indices = values[:, :k], indices[:, :k]
        # Ties among entries of -inf do not matter, as callers never return such entries.
        tied &= values[:, -1] != -torch.inf
        if bool(tied.any()):
            values, indices = values.clone(), indices.clone()
            values[tied], indices[tied] = _cut_within_ties(scores, tied.nonzero()[:, 0], values[tied][:, -1], k)
    return values, indices


def _cut_within_ties(scores: Tensor, rows: Tensor, cuts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return values and indices [R, k] of the k largest entries of rows with a tie at the k-th largest entry.

    `rows [R]` are the row numbers, `cuts [R]` their k-th largest entries, which occur more often than fit into k.
    """
    best_values, best_indices = [], []
    size = max(1, BLOCK_ENTRIES // scores.shape[1])
    for block, cut in zip(torch.split(rows, size), torch.split(cuts, size), strict=True):
        part = scores[block]
        is_above, is_tied = part > cut[:, None], part == cut[:, None]
        room = k - is_above.sum(1, dtype=torch.int32)
        is_best = is_above | (is_tied & (is_tied.cumsum(1, dtype=torch.int32) <= room[:, None]))
        indices = is_best.nonzero()[:, 1].view(len(block), k)  # ascending within a row
        values, order = part.gather(1, indices).sort(dim=1, descending=True, stable=True)
        best_values.append(values)
        best_indices.append(indices.gather(1, order))
    return torch.cat(best_values), torch.cat(best_indices)


def stable_topk_reference(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return what `stable_topk` returns, computed by a stable sort of whole rows."""
    values, indices = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :k], indices[:, :k]
