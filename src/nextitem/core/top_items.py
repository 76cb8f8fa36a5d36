"""Lists of recommendations from scores: the k best items, or candidates, that each request allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.ops.topk import stable_topk

SHARED_ENTRIES = 2**20  # list entries that `top_shared_items` processes at a time


def top_items(scores: Tensor, batch: SequenceBatch, k: int) -> Recommendations:
    """Return the k best items that each request allows, by `scores [B, N + 1]`; ties go to the smaller item number.

    An item with the score -inf is never returned. `scores` is overwritten: column 0 and items that are not allowed
    become -inf. Raises ValueError if one of the best scores is NaN or +inf, as such scores define no order.
    """
    scores[:, 0] = -torch.inf
    if batch.allowed is not None:
        scores.masked_fill_(~batch.allowed, -torch.inf)
    if batch.excluded is not None:
        scores[batch.excluded.row_ids(), batch.excluded.values] = -torch.inf
    values, items = stable_topk(scores, min(k, scores.shape[1]))
    # NaN and +inf sort before every other number, so they are among the best entries if there are any.
    if bool((values[:, :1].isnan() | (values[:, :1] == torch.inf)).any()):
        raise ValueError("scores that order a list must be finite, and some are NaN or infinite")
    missing = (0, k - values.shape[1])
    values = torch.nn.functional.pad(values, missing, value=-torch.inf)
    items = torch.nn.functional.pad(items, missing).masked_fill(values == -torch.inf, 0)
    return Recommendations(items, values.to(torch.float32))


def top_shared_items(scores: Tensor, rows: Tensor, batch: SequenceBatch, k: int) -> Recommendations:
    """Return `top_items(scores[rows], batch, k)`, computed without a row of all items for each request.

    Several requests share a row of `scores [V, N + 1]`: request b has the row `rows[b]` (int64 [B]). The best items of
    each row are selected once, enough of them to replace all that its requests exclude. `scores` is not changed.
    """
    if len(rows) <= len(scores) or (batch.allowed is not None and len(batch.allowed) > 1):
        return top_items(scores[rows], batch, k)
    lengths = torch.zeros_like(rows) if batch.excluded is None else batch.excluded.lengths
    num_items = scores.shape[1] - 1
    row_requests = SequenceBatch(Jagged.from_rows([[]] * len(scores)).to(scores.device), allowed=batch.allowed)
    best = top_items(scores.clone(), row_requests, min(k + int(lengths.max()), num_items))
    order = lengths.argsort(stable=True)
    widths = (k + lengths[order]).clamp(max=num_items).tolist()
    answers, start = [], 0
    while start < len(widths):  # process requests together that exclude similar numbers of items
        end = start + 1
        while end < len(widths) and (end + 1 - start) * widths[end] <= SHARED_ENTRIES:
            end += 1
        answers.append(_without_excluded(best, rows, batch, order[start:end], width=widths[end - 1], k=k))
        start = end
    to_batch_order = order.argsort()
    return Recommendations(
        torch.cat([items for items, _ in answers])[to_batch_order],
        torch.cat([values for _, values in answers])[to_batch_order],
    )


def _without_excluded(
    best: Recommendations, rows: Tensor, batch: SequenceBatch, requests: Tensor, *, width: int, k: int
) -> tuple[Tensor, Tensor]:
    """Return items and scores [n, k] of the requests `requests [n]`, without the items that they exclude.

    They are the first k of the first `width` entries of the list `best` of each request's row that are not excluded.
    """
    items, values = best.item_ids[rows[requests], :width], best.scores[rows[requests], :width]
    if batch.excluded is not None:
        excluded = batch.excluded.select(requests)
        span = int(items.max()) + 1 if items.numel() else 1  # key of an item of row r: r * span + item
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
    """Return the k best candidates of each request that it allows.

    An item that occurs twice among the candidates counts once. Ties go to the smaller item number.

    Args:
        candidates: candidates of each request, P in all.
        scores: scores of the candidates, [P].
        batch: the requests, with the items that they allow and exclude.
        k: number of items to return for each request.
        num_items: number of items of the catalogue (N).
        unseen: items that are ranked after all other candidates of their request, bool [N + 1], or None.

    Raises:
        ValueError: a score is not finite; its candidate would be missing from the list without notice.

    """
    if not bool(scores.isfinite().all()):
        raise ValueError("scores of candidates must be finite, and some are NaN or infinite")
    items, order = candidates.to_padded().sort(dim=1, stable=True)
    padded = candidates.with_values(scores).to_padded(fill=-torch.inf).gather(1, order)
    if unseen is not None:
        is_unseen = unseen[items]
        lowest = padded.masked_fill(is_unseen | (items == 0), torch.inf).amin(1, keepdim=True)
        lowest = lowest.masked_fill(lowest == torch.inf, 0.0)  # all candidates are unseen
        padded = torch.where(is_unseen, lowest - 1, padded)
    padded[:, 1:].masked_fill_(items[:, 1:] == items[:, :-1], -torch.inf)
    legal = batch.legal(num_items)
    padded.masked_fill_((items == 0) if legal is None else ~legal.gather(1, items), -torch.inf)
    missing = (0, max(0, k - items.shape[1]))
    values, columns = stable_topk(torch.nn.functional.pad(padded, missing, value=-torch.inf), k)
    items = torch.nn.functional.pad(items, missing).gather(1, columns).masked_fill(values == -torch.inf, 0)
    return Recommendations(items, values.to(torch.float32))


def rank_unseen_last(scores: Tensor, unseen: Tensor | None) -> Tensor:
    """Set the scores of `unseen` items (bool [N + 1], or None) below all others, in place, and return `scores`.

    `scores` are [B, N + 1]. Every unseen item gets the lowest score of the other items in its row minus 1, so unseen
    items are ranked by item number. Column 0, padding, is ignored and set to 0. At least one item must not be unseen.
    """
    if unseen is None:
        return scores
    columns = unseen.nonzero()[:, 0]  # an index is written three times as fast as a mask
    scores[:, 0] = torch.inf
    scores.index_fill_(1, columns, torch.inf)
    lowest = scores.amin(1, keepdim=True)
    scores.index_copy_(1, columns, (lowest - 1).expand(-1, len(columns)))
    scores[:, 0] = 0
    return scores


def search_unseen_last(
    search: Callable[[SequenceBatch], Recommendations], batch: SequenceBatch, unseen: Tensor | None
) -> Recommendations:
    """Return the answer of `search` among the seen items, with short lists filled by `unseen` items (bool [N + 1]).

    It is for models that do not score every item: their search must not return an item of which they have learned
    nothing before the other items.
    """
    if unseen is None:
        return search(batch)
    allowed = ~unseen[None] if batch.allowed is None else batch.allowed & ~unseen
    return append_unseen(search(replace(batch, allowed=allowed)), batch, unseen)


def append_unseen(answer: Recommendations, batch: SequenceBatch, unseen: Tensor | None) -> Recommendations:
    """Return `answer` with short lists filled by the `unseen` items (bool [N + 1]) that their request allows.

    A list is short if it has fewer than K items. The unseen items are appended in order of the item number, each with
    the last score of the list minus 1. `answer` must not contain unseen items.
    """
    short_rows = (answer.item_ids[:, -1] == 0).nonzero()[:, 0]
    if unseen is None or not len(short_rows):
        return answer
    k = answer.item_ids.shape[1]
    items, scores = answer.item_ids[short_rows], answer.scores[short_rows]
    num_listed = (items > 0).sum(1, keepdim=True)
    last_scores = scores.gather(1, (num_listed - 1).clamp(min=0)).masked_fill(num_listed == 0, 0.0)
    order = torch.zeros(unseen.shape, device=unseen.device).masked_fill(~unseen, -torch.inf)
    new_items = top_items(order.repeat(len(short_rows), 1), batch.select(short_rows), k).item_ids
    joined = torch.cat([items, new_items], 1)
    to_front = (joined == 0).to(torch.uint8).argsort(dim=1, stable=True)[:, :k]
    new_scores = (last_scores - 1).expand(-1, k).masked_fill(new_items == 0, -torch.inf)
    all_items, all_scores = answer.item_ids.clone(), answer.scores.clone()
    all_items[short_rows] = joined.gather(1, to_front)
    all_scores[short_rows] = torch.cat([scores, new_scores], 1).gather(1, to_front)
    return replace(answer, item_ids=all_items, scores=all_scores)
