"""Top-k with a stated rule for ties: the smaller index wins."""

from __future__ import annotations

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations


def stable_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and indices of the k largest entries of each row; ties go to the smaller index.

    `scores [B, N]`, -inf allowed, no NaN; k <= N. Returns values [B, k] falling and indices [B, k] int64.
    Rows are cut by torch.topk; only rows whose cut falls inside a tie are sorted in full.
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
        # A tie among -inf only is a tie of entries that nobody returns.
        tied &= values[:, -1] != -torch.inf
        if bool(tied.any()):
            values, indices = values.clone(), indices.clone()
            values[tied], indices[tied] = stable_topk_reference(scores[tied], k)
    return values, indices


def stable_topk_reference(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same by a stable sort of whole rows."""
    values, indices = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :k], indices[:, :k]


def top_items(scores: Tensor, batch: SequenceBatch, k: int) -> Recommendations:
    """The k best items that each request allows, by `scores [B, N + 1]`; -inf means never.

    `scores` is overwritten (column 0 and what is not allowed become -inf). Ties go to
    the smaller item number.
    """
    scores[:, 0] = -torch.inf
    if batch.allowed is not None:
        scores.masked_fill_(~batch.allowed, -torch.inf)
    if batch.excluded is not None:
        scores[batch.excluded.row_ids(), batch.excluded.values] = -torch.inf
    values, items = stable_topk(scores, min(k, scores.shape[1]))
    missing = (0, k - values.shape[1])
    values = torch.nn.functional.pad(values, missing, value=-torch.inf)
    items = torch.nn.functional.pad(items, missing).masked_fill(values == -torch.inf, 0)
    return Recommendations(items, values.to(torch.float32))


def top_candidates(
    candidates: Jagged, scores: Tensor, batch: SequenceBatch, k: int, *, num_items: int
) -> Recommendations:
    """The k best of each request's own candidates that it allows, by `scores [P]`, one for each candidate.

    An item that stands twice among the candidates counts once. Ties go to the smaller item number.
    """
    items, order = candidates.to_padded().sort(dim=1, stable=True)
    padded = candidates.with_values(scores).to_padded(fill=-torch.inf).gather(1, order)
    padded[:, 1:].masked_fill_(items[:, 1:] == items[:, :-1], -torch.inf)
    legal = batch.legal(num_items)
    padded.masked_fill_((items == 0) if legal is None else ~legal.gather(1, items), -torch.inf)
    wide = (0, max(0, k - items.shape[1]))
    values, places = stable_topk(torch.nn.functional.pad(padded, wide, value=-torch.inf), k)
    items = torch.nn.functional.pad(items, wide).gather(1, places).masked_fill(values == -torch.inf, 0)
    return Recommendations(items, values.to(torch.float32))
