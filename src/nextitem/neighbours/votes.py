"""Votes of a few items for others: what neighbourhood models answer from, without a look at the whole catalogue.

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

# Far below any vote, so popularity only orders what has none.
BACKFILL = 1e-6
DENSE_FROM = 0.25  # share of the catalogue with votes from which whole rows are looked at
BLOCK_ENTRIES = 2**22  # votes that are looked at together: some tens of MiB


def recent_history(batch: SequenceBatch, *, count: int | None, decay: float, num_items: int) -> sp.csr_matrix:
    """The last `count` events of each history (None: all) as weights of items [B, N + 1].

    An event weighs `decay` ** (events after it); an item that stands twice has the sum, or 1 where nothing decays.
    """
    recent = batch.items if count is None else batch.items.last(count)
    weights = decay ** ages(recent.offsets).float()
    history = weighted_histories(recent.values, recent.offsets, weights, num_items=num_items)
    if decay == 1:
        history.data[:] = 1
    return history


def top_voted(votes: sp.csr_matrix, popularity: Tensor, batch: SequenceBatch, k: int) -> Recommendations:
    """Return the k items with most votes `[B, N + 1]` that each request allows; then, by popularity, those without any.

    Requests with about equally many votes are answered together, so that memory follows the votes, and never the number
    of requests times the catalogue.
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
        most = max(1, BLOCK_ENTRIES // max(1, int(widths[order[start]])))
        rows = order[start : start + most]
        rows = rows[: max(1, int((widths[rows] * np.arange(1, len(rows) + 1) <= BLOCK_ENTRIES).sum()))]
        is_sparse = lengths[rows] < dense_from
        rows = rows[is_sparse == is_sparse[0]]
        asked = batch.select(torch.from_numpy(rows))
        answers.append((_from_votes if is_sparse[0] else _from_all)(votes[rows], backfill, asked, k))
        start += len(rows)
    back = torch.from_numpy(np.argsort(order, kind="stable"))
    return Recommendations(
        torch.cat([answer.item_ids for answer in answers])[back], torch.cat([answer.scores for answer in answers])[back]
    )


def _from_all(votes: sp.csr_matrix, backfill: Tensor, batch: SequenceBatch, k: int) -> Recommendations:
    """Lists from rows of all items."""
    return top_items(torch.from_numpy(votes.toarray()).add_(backfill), batch, k)


def voted_scores(votes: sp.csr_matrix, popularity: Tensor) -> Tensor:
    """Return the scores [B, N + 1] by which `top_voted` orders all items (roles.ItemScorer)."""
    return torch.from_numpy(votes.toarray()).add_(_backfill(popularity))


def _backfill(popularity: Tensor) -> Tensor:
    """What popularity adds to votes, [N + 1]: more than 0 for every item with a training event."""
    return (BACKFILL * popularity / popularity.max().clamp(min=1)).cpu()


def _from_votes(votes: sp.csr_matrix, backfill: Tensor, batch: SequenceBatch, k: int) -> Recommendations:
    """Lists from the items with votes alone; popular items follow in requests that allow fewer than k such."""
    votes.sort_indices()
    values, columns = padded_rows(votes, np.arange(batch.num_requests))
    values += backfill[columns]
    _forbid(values, columns, votes, batch)
    width = max(0, k - values.shape[1])
    values = torch.nn.functional.pad(values, (0, width), value=-torch.inf)
    scores, places = stable_topk(values, k)
    items = torch.nn.functional.pad(columns, (0, width)).gather(1, places)
    items.masked_fill_(scores == -torch.inf, 0)
    short = (scores[:, -1] == -torch.inf).nonzero()[:, 0]
    if len(short):
        popular = _popular_without_votes(votes[short.numpy()], backfill, batch.select(short), k)
        items[short], scores[short] = _merged(
            torch.cat([items[short], popular.item_ids], 1), torch.cat([scores[short], popular.scores], 1), k
        )
    return Recommendations(items, scores)


def _forbid(values: Tensor, columns: Tensor, votes: sp.csr_matrix, batch: SequenceBatch) -> None:
    """Set `values [B, X]` of the votes for `columns [B, X]` to -inf if their request may not be answered with them."""
    if batch.allowed is not None:
        if len(batch.allowed) == 1:
            values.masked_fill_(~batch.allowed[0][columns], -torch.inf)
        else:
            values.masked_fill_(~batch.allowed.gather(1, columns), -torch.inf)
    if batch.excluded is not None and votes.nnz:
        span = votes.shape[1]
        keys = np.repeat(np.arange(votes.shape[0]) * span, np.diff(votes.indptr)) + votes.indices  # rising
        rows = batch.excluded.row_ids().numpy()
        excluded = rows * span + batch.excluded.values.numpy()
        entries = np.minimum(np.searchsorted(keys, excluded), len(keys) - 1)
        rows, entries = (each[keys[entries] == excluded] for each in (rows, entries))
        values[torch.from_numpy(rows), torch.from_numpy(entries - votes.indptr[rows])] = -torch.inf


def _popular_without_votes(votes: sp.csr_matrix, backfill: Tensor, batch: SequenceBatch, k: int) -> Recommendations:
    """Return the k most popular items of each request that have no vote."""
    excluded = Jagged(torch.from_numpy(votes.indices.astype(np.int64)), torch.from_numpy(votes.indptr.astype(np.int64)))
    if batch.excluded is not None:
        excluded = batch.excluded.append(excluded)
    shared = torch.zeros(batch.num_requests, dtype=torch.int64)
    return top_shared_items(backfill[None], shared, replace(batch, excluded=excluded), k)


def _merged(items: Tensor, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best of `items [B, X]`, which are distinct but for padding; ties go to the smaller item number."""
    items, order = items.sort(dim=1)
    scores, places = stable_topk(scores.gather(1, order), k)
    return items.gather(1, places), scores
