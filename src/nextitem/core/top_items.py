"""Lists from scores: the k best items, or candidates, that each request allows."""

from __future__ import annotations

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.ops.topk import stable_topk


def top_items(scores: Tensor, batch: SequenceBatch, k: int) -> Recommendations:
    """Return the k best items that each request allows, by `scores [B, N + 1]`; ties go to the smaller item number.

    -inf means that an item is never returned. `scores` is overwritten: column 0 and what is not allowed become -inf.
    Raises ValueError if one of the best scores is NaN or +inf: such a score orders nothing.
    """
    scores[:, 0] = -torch.inf
    if batch.allowed is not None:
        scores.masked_fill_(~batch.allowed, -torch.inf)
    if batch.excluded is not None:
        scores[batch.excluded.row_ids(), batch.excluded.values] = -torch.inf
    values, items = stable_topk(scores, min(k, scores.shape[1]))
    # NaN and +inf sort before every number, so the best entries show them if there are any.
    if bool((values[:, :1].isnan() | (values[:, :1] == torch.inf)).any()):
        raise ValueError("scores that order a list must be finite, and some are NaN or infinite")
    missing = (0, k - values.shape[1])
    values = torch.nn.functional.pad(values, missing, value=-torch.inf)
    items = torch.nn.functional.pad(items, missing).masked_fill(values == -torch.inf, 0)
    return Recommendations(items, values.to(torch.float32))


def top_candidates(
    candidates: Jagged, scores: Tensor, batch: SequenceBatch, k: int, *, num_items: int
) -> Recommendations:
    """Return the k best of each request's own candidates that it allows, by `scores [P]`, one for each candidate.

    An item that occurs twice among the candidates counts once. Ties go to the smaller item number. Raises ValueError if
    a score is not finite: the candidate would drop out of the list unnoticed.
    """
    if not bool(scores.isfinite().all()):
        raise ValueError("scores of candidates must be finite, and some are NaN or infinite")
    items, order = candidates.to_padded().sort(dim=1, stable=True)
    padded = candidates.with_values(scores).to_padded(fill=-torch.inf).gather(1, order)
    padded[:, 1:].masked_fill_(items[:, 1:] == items[:, :-1], -torch.inf)
    legal = batch.legal(num_items)
    padded.masked_fill_((items == 0) if legal is None else ~legal.gather(1, items), -torch.inf)
    wide = (0, max(0, k - items.shape[1]))
    values, places = stable_topk(torch.nn.functional.pad(padded, wide, value=-torch.inf), k)
    items = torch.nn.functional.pad(items, wide).gather(1, places).masked_fill(values == -torch.inf, 0)
    return Recommendations(items, values.to(torch.float32))
