"""Recommendations of neighbourhood models from sparse votes for items, without scoring the whole catalogue.

Shapes: B requests, N items, K returned.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.core.top_items import top_items, top_shared_items
from nextitem.neighbours.sparse_rows import ages, padded_rows, weighted_histories
from nextitem.ops.topk import stable_topk

# Weight of popularity, far below any vote, so that popularity only orders the items without votes.
BACKFILL = 1e-6
DENSE_FROM = 0.25  # fraction of the catalogue with votes from which dense rows are used
BLOCK_ENTRIES = 2**22  # number of votes that are processed together: some tens of MiB


def recent_history(batch: SequenceBatch, *, count: int | None, decay: float, num_items: int) -> sp.csr_matrix:
    """Return the last `count` events of each history (None: all events) as a sparse matrix of weights [B, N + 1].

    The weight of an event is `decay` ** (number of events after it). A repeated item has the sum of the weights of its
    events, or 1 if `decay` is 1.
    """
    recent = batch.items if count is None else batch.items.last(count)
    weights = decay ** ages(recent.offsets).float()
    history = weighted_histories(recent.values, recent.offsets, weights, num_items=num_items)
    if decay == 1:
        history.data[:] = 1
    return history


def top_voted(votes: sp.csr_matrix, popularity: Tensor, batch: SequenceBatch, k: int) -> Recommendations:
    """Return the k allowed items with the most `votes [B, N + 1]` for each request.

    Items without votes follow by popularity. Requests with similar numbers of votes are processed together. So memory
    grows with the number of votes, not with the number of requests times the size of the catalogue.
    """
    backfill = _backfill(popularity)
    lengths = np.diff(votes.indptr)
    dense_from = max(k, DENSE_FROM * len(backfill))
    widths = np.where(lengths < dense_from, lengths, len(backfill))
    if lengths.max() < dense_from and len(widths) * int(widths.max()) <= BLOCK_ENTRIES:
        return _from_votes(votes, backfill, batch, k)
    order = np.argsort(widths, kind="stable")
    answers, start = [], 0
    while start < len(order):
        max_rows = max(1, BLOCK_ENTRIES // max(1, int(widths[order[start]])))
        rows = order[start : start + max_rows]
        rows = rows[: max(1, int((widths[rows] * np.arange(1, len(rows) + 1) <= BLOCK_ENTRIES).sum()))]
        is_sparse = lengths[rows] < dense_from
        rows = rows[is_sparse == is_sparse[0]]
        requests = batch.select(torch.from_numpy(rows))
        answers.append((_from_votes if is_sparse[0] else _from_all)(votes[rows], backfill, requests, k))
        start += len(rows)
    places = torch.from_numpy(np.argsort(order, kind="stable"))
    return Recommendations(
        torch.cat([answer.item_ids for answer in answers])[places],
        torch.cat([answer.scores for answer in answers])[places],
    )


def _from_all(votes: sp.csr_matrix, backfill: Tensor, batch: SequenceBatch, k: int) -> Recommendations:
    """Return the top items from dense rows of votes for all items."""
    return top_items(torch.from_numpy(votes.toarray()).add_(backfill), batch, k)


def voted_scores(votes: sp.csr_matrix, popularity: Tensor) -> Tensor:
    """Return the scores [B, N + 1] by which `top_voted` orders all items (roles.ItemScorer)."""
    return torch.from_numpy(votes.toarray()).add_(_backfill(popularity))


def _backfill(popularity: Tensor) -> Tensor:
    """Return the values that popularity adds to votes, [N + 1]: above 0 for every item with a training event."""
    return (BACKFILL * popularity / popularity.max().clamp(min=1)).cpu()


def _from_votes(votes: sp.csr_matrix, backfill: Tensor, batch: SequenceBatch, k: int) -> Recommendations:
    """Return the top items from sparse votes; popular items follow if fewer than k allowed items have votes."""
    votes.sort_indices()
    values, columns = padded_rows(votes, np.arange(batch.num_requests))
    values += backfill[columns]
    _mask_disallowed(values, columns, votes, batch)
    num_missing = max(0, k - values.shape[1])
    values = torch.nn.functional.pad(values, (0, num_missing), value=-torch.inf)
    scores, places = stable_topk(values, k)
    items = torch.nn.functional.pad(columns, (0, num_missing)).gather(1, places)
    items.masked_fill_(scores == -torch.inf, 0)
    short = (scores[:, -1] == -torch.inf).nonzero()[:, 0]
    if len(short):
        popular = _popular_without_votes(votes[short.numpy()], backfill, batch.select(short), k)
        items[short], scores[short] = _best_of_merged(
            torch.cat([items[short], popular.item_ids], 1), torch.cat([scores[short], popular.scores], 1), k
        )
    return Recommendations(items, scores)


def _mask_disallowed(values: Tensor, columns: Tensor, votes: sp.csr_matrix, batch: SequenceBatch) -> None:
    """Set `values [B, X]` of the votes for items `columns [B, X]` to -inf, in place, if their request disallows them.

    An item is disallowed if it is not in an allow-list of its request or if it is excluded.
    """
    if batch.allowed is not None:
        if len(batch.allowed) == 1:
            values.masked_fill_(~batch.allowed[0][columns], -torch.inf)
        else:
            values.masked_fill_(~batch.allowed.gather(1, columns), -torch.inf)
    if batch.excluded is not None and votes.nnz:
        span = votes.shape[1]
        keys = np.repeat(np.arange(votes.shape[0]) * span, np.diff(votes.indptr)) + votes.indices  # ascending
        rows = batch.excluded.row_ids().numpy()
        excluded = rows * span + batch.excluded.values.numpy()
        entries = np.minimum(np.searchsorted(keys, excluded), len(keys) - 1)
        has_vote = keys[entries] == excluded
        rows, entries = rows[has_vote], entries[has_vote]
        values[torch.from_numpy(rows), torch.from_numpy(entries - votes.indptr[rows])] = -torch.inf


def _popular_without_votes(votes: sp.csr_matrix, backfill: Tensor, batch: SequenceBatch, k: int) -> Recommendations:
    """Return the k most popular allowed items without a vote for each request."""
    excluded = Jagged(torch.from_numpy(votes.indices.astype(np.int64)), torch.from_numpy(votes.indptr.astype(np.int64)))
    if batch.excluded is not None:
        excluded = batch.excluded.append(excluded)
    shared = torch.zeros(batch.num_requests, dtype=torch.int64)
    return top_shared_items(backfill[None], shared, replace(batch, excluded=excluded), k)


def _best_of_merged(items: Tensor, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best of `items [B, X]` by `scores [B, X]`; ties go to the smaller item number.

    The items of a row have to be distinct, except for padding.
    """
    items, order = items.sort(dim=1)
    scores, places = stable_topk(scores.gather(1, order), k)
    return items.gather(1, places), scores
