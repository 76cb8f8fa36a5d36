"""Votes of a few items for others: what neighbourhood models answer from, without a look at the whole catalogue.

Shapes: B requests, N items, K returned.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.recommendations import Recommendations
from nextitem.core.top_items import top_items
from nextitem.neighbours.sparse_rows import ages, padded_rows, weighted_histories
from nextitem.ops.topk import stable_topk

# Far below any vote, so popularity only orders what has none.
BACKFILL = 1e-6
DENSE_FROM = 0.25  # share of the catalogue with votes from which whole rows are looked at


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
    """The k items with most votes `[B, N + 1]` that each request allows; then, by popularity, those without any."""
    backfill = _backfill(popularity)
    lengths = np.diff(votes.indptr)
    if int(lengths.max()) < max(k, DENSE_FROM * len(backfill)):
        return _from_votes(votes, backfill, batch, k)
    return top_items(_dense(votes, backfill), batch, k)


def voted_scores(votes: sp.csr_matrix, popularity: Tensor) -> Tensor:
    """Return the scores [B, N + 1] by which `top_voted` orders all items (roles.ItemScorer)."""
    return _dense(votes, _backfill(popularity))


def _backfill(popularity: Tensor) -> Tensor:
    """What popularity adds to votes, [N + 1]: more than 0 for every item with a training event."""
    return (BACKFILL * popularity / popularity.max().clamp(min=1)).cpu()


def _from_votes(votes: sp.csr_matrix, backfill: Tensor, batch: SequenceBatch, k: int) -> Recommendations:
    """Lists from the items with votes alone; requests with fewer than k such are answered from all items."""
    votes.sort_indices()
    values, columns = padded_rows(votes, np.arange(batch.num_requests))
    values += backfill[columns]
    legal = batch.legal(len(backfill) - 1)
    if legal is not None:
        values.masked_fill_(~legal.gather(1, columns), -torch.inf)
    width = max(0, k - values.shape[1])
    values = torch.nn.functional.pad(values, (0, width), value=-torch.inf)
    scores, places = stable_topk(values, k)
    items = torch.nn.functional.pad(columns, (0, width)).gather(1, places)
    short = (scores[:, -1] == -torch.inf).nonzero()[:, 0]
    if len(short):
        rest = top_items(_dense(votes[short.numpy()], backfill), batch.select(short), k)
        items[short], scores[short] = rest.item_ids, rest.scores
    return Recommendations(items, scores)


def _dense(votes: sp.csr_matrix, backfill: Tensor) -> Tensor:
    """Scores of all items [B, N + 1]."""
    return torch.from_numpy(votes.toarray()).add_(backfill)
