"""Lists from scores: the k best items, or candidates, that each request allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.ops.topk import stable_topk

SHARED_ENTRIES = 2**20  # entries of shared lists that are looked at together


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


def top_shared_items(scores: Tensor, rows: Tensor, batch: SequenceBatch, k: int) -> Recommendations:
    """Return what `top_items(scores[rows], batch, k)` returns, without a row of all items for each request.

    `scores [V, N + 1]` belong to requests alike: request b has the row `rows[b]` (int64 [B]). Each row is cut once,
    long enough for what its requests exclude. `scores` is left as it is.
    """
    if len(rows) <= len(scores) or (batch.allowed is not None and len(batch.allowed) > 1):
        return top_items(scores[rows], batch, k)
    lengths = torch.zeros_like(rows) if batch.excluded is None else batch.excluded.lengths
    num_items = scores.shape[1] - 1
    everything = SequenceBatch(Jagged.from_rows([[]] * len(scores)).to(scores.device), allowed=batch.allowed)
    best = top_items(scores.clone(), everything, min(k + int(lengths.max()), num_items))
    order = lengths.argsort(stable=True)
    widths = (k + lengths[order]).clamp(max=num_items).tolist()
    answers, start = [], 0
    while start < len(widths):  # requests that exclude about equally many items together
        end = start + 1
        while end < len(widths) and (end + 1 - start) * widths[end] <= SHARED_ENTRIES:
            end += 1
        answers.append(_without_excluded(best, rows, batch, order[start:end], width=widths[end - 1], k=k))
        start = end
    back = order.argsort()
    return Recommendations(
        torch.cat([items for items, _ in answers])[back], torch.cat([values for _, values in answers])[back]
    )


def _without_excluded(
    best: Recommendations, rows: Tensor, batch: SequenceBatch, requests: Tensor, *, width: int, k: int
) -> tuple[Tensor, Tensor]:
    """Items and scores [n, k] of some `requests [n]`: the first of `width` entries of their list that stay."""
    items, values = best.item_ids[rows[requests], :width], best.scores[rows[requests], :width]
    if batch.excluded is not None:
        excluded = batch.excluded.select(requests)
        span = int(items.max()) + 1 if items.numel() else 1
        span = max(span, int(excluded.values.max()) + 1 if len(excluded.values) else 1)
        keys = torch.arange(len(items), device=items.device)[:, None] * span + items
        is_excluded = torch.isin(keys, excluded.row_ids() * span + excluded.values)
        order = is_excluded.to(torch.uint8).argsort(dim=1, stable=True)[:, :k]
        items = items.masked_fill(is_excluded, 0).gather(1, order)
        values = values.masked_fill(is_excluded, -torch.inf).gather(1, order)
    missing = (0, max(0, k - items.shape[1]))
    items, values = items[:, :k], values[:, :k]
    return torch.nn.functional.pad(items, missing), torch.nn.functional.pad(values, missing, value=-torch.inf)


def top_candidates(
    candidates: Jagged,
    scores: Tensor,
    batch: SequenceBatch,
    k: int,
    *,
    num_items: int,
    unseen: Tensor | None = None,
) -> Recommendations:
    """Return the k best of each request's own candidates that it allows, by `scores [P]`, one for each candidate.

    An item that occurs twice among the candidates counts once. Ties go to the smaller item number. Candidates that are
    `unseen` (bool [N + 1]) follow all others of their request. Raises ValueError if a score is not finite: the
    candidate would drop out of the list unnoticed.
    """
    if not bool(scores.isfinite().all()):
        raise ValueError("scores of candidates must be finite, and some are NaN or infinite")
    items, order = candidates.to_padded().sort(dim=1, stable=True)
    padded = candidates.with_values(scores).to_padded(fill=-torch.inf).gather(1, order)
    if unseen is not None:
        is_unseen = unseen[items]
        lowest = padded.masked_fill(is_unseen | (items == 0), torch.inf).amin(1, keepdim=True)
        lowest = lowest.masked_fill(lowest == torch.inf, 0.0)  # nothing but unseen candidates
        padded = torch.where(is_unseen, lowest - 1, padded)
    padded[:, 1:].masked_fill_(items[:, 1:] == items[:, :-1], -torch.inf)
    legal = batch.legal(num_items)
    padded.masked_fill_((items == 0) if legal is None else ~legal.gather(1, items), -torch.inf)
    wide = (0, max(0, k - items.shape[1]))
    values, places = stable_topk(torch.nn.functional.pad(padded, wide, value=-torch.inf), k)
    items = torch.nn.functional.pad(items, wide).gather(1, places).masked_fill(values == -torch.inf, 0)
    return Recommendations(items, values.to(torch.float32))


def rank_unseen_last(scores: Tensor, unseen: Tensor | None) -> Tensor:
    """Put `unseen` items (bool [N + 1]; None: there are none) below all others, in `scores [B, N + 1]` itself.

    Each of them gets the row's lowest score of another item minus 1, so that they stay in order of the item number.
    Column 0, padding, counts for nothing. At least one item must not be unseen.
    """
    if unseen is None:
        return scores
    scores[:, 0] = torch.inf
    scores[:, unseen] = torch.inf
    lowest = scores.amin(1, keepdim=True)
    scores[:, unseen] = lowest - 1
    scores[:, 0] = 0
    return scores


def search_unseen_last(
    search: Callable[[SequenceBatch], Recommendations], batch: SequenceBatch, unseen: Tensor | None
) -> Recommendations:
    """Answer by `search` among the other items, and fill lists that stay short with `unseen` items (bool [N + 1]).

    For models that do not score every item: their search must not give a place to an item of which they know nothing.
    """
    if unseen is None:
        return search(batch)
    allowed = ~unseen[None] if batch.allowed is None else batch.allowed & ~unseen
    return append_unseen(search(replace(batch, allowed=allowed)), batch, unseen)


def append_unseen(answer: Recommendations, batch: SequenceBatch, unseen: Tensor | None) -> Recommendations:
    """Fill lists that are shorter than K with those of the `unseen` items (bool [N + 1]) that their request allows.

    They follow in order of the item number, each with the list's last score minus 1. `answer` holds none of them.
    """
    short = (answer.item_ids[:, -1] == 0).nonzero()[:, 0]
    if unseen is None or not len(short):
        return answer
    k = answer.item_ids.shape[1]
    items, scores = answer.item_ids[short], answer.scores[short]
    num_listed = (items > 0).sum(1, keepdim=True)
    last = scores.gather(1, (num_listed - 1).clamp(min=0)).masked_fill(num_listed == 0, 0.0)
    order = torch.zeros(unseen.shape, device=unseen.device).masked_fill(~unseen, -torch.inf)
    further = top_items(order.repeat(len(short), 1), batch.select(short), k).item_ids
    joined = torch.cat([items, further], 1)
    to_front = (joined == 0).to(torch.uint8).argsort(dim=1, stable=True)[:, :k]
    further_scores = (last - 1).expand(-1, k).masked_fill(further == 0, -torch.inf)
    all_items, all_scores = answer.item_ids.clone(), answer.scores.clone()
    all_items[short] = joined.gather(1, to_front)
    all_scores[short] = torch.cat([scores, further_scores], 1).gather(1, to_front)
    return replace(answer, item_ids=all_items, scores=all_scores)
