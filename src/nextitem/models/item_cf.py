"""Item-CF: items that the same users took, after Linden, Smith and York (Amazon.com Recommendations, 2003).

Two items are similar when many users took both, the more so close together, and when those users took little
else; similarities are normalised by the items' own counts. A request sums the similarities of its recent items
to every other item.

    w_ij = sum over users of f(distance) / log(1 + |N(u)|)  /  sqrt(|U(i)| |U(j)|)

Notable
- Distance between two events of a user is counted in events, not in hours: it is defined on undated logs too, and
  a basket whose lines share one timestamp keeps its order. f = decay ** (distance - 1), within `window` events.
- With `window`, `activity_penalty` and `recency_decay` off this is cosine similarity of binary columns, and
  equals the implicit library's CosineRecommender (tested).
- An item that stands several times in a history counts once in similarities.
- Items without any similarity to the history follow by popularity, below all that have some.

Shapes: B requests, N items, K returned.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from pydantic import Field

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.interactions import Interactions
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.nn.sparse_rows import SparseRows, ages, weighted_histories
from nextitem.ops.topk import top_items

# Far below any similarity that a pair of users' events can give, so popularity only orders what has none.
BACKFILL = 1e-6


class ItemCFConfig(configs.Config):
    """Settings of ItemCF."""

    neighbours: int = Field(100, ge=1)  # similar items kept for each item
    window: int | None = Field(20, ge=1)  # pairs at most this many events apart count; None: all pairs, alike
    decay: float = Field(0.9, gt=0, le=1)  # factor on a pair for each further event between the two
    activity_penalty: bool = True  # divide a user's pairs by log(1 + number of their items)
    normalise_rows: bool = True  # scale each item's similarities so that the largest is 1
    recent_items: int | None = Field(20, ge=1)  # items of the history that vote; None: all
    recency_decay: float = Field(0.8, gt=0, le=1)  # factor on a vote for each event that followed it


class ItemCF(Recommender):
    """Ranks items by their similarity to the history."""

    Config = ItemCFConfig
    known_answers: ClassVar[tuple[str, ...]] = ("checkerboard", "planted-clusters")

    def __init__(self, config: ItemCFConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.settings = config
        self.similarities = SparseRows()  # [N + 1, N + 1], row j: what j votes for

    def fit(self, train: Dataset) -> None:
        """Computes each item's most similar items."""
        log = train.interactions.targets_only()
        taken = _taken(log)
        users = np.asarray(taken.sum(axis=1)).ravel()
        penalty = 1 / np.log1p(np.maximum(users, 1)) if self.settings.activity_penalty else np.ones_like(users)
        if self.settings.window is None:
            together = (taken.T @ sp.diags_array(penalty.astype(np.float32)) @ taken).tocsr()
        else:
            together = _close_pairs(log, penalty, self.settings.window, self.settings.decay)
        together.setdiag(0)
        together.eliminate_zeros()
        norms = np.sqrt(np.maximum(np.asarray(taken.sum(axis=0)).ravel(), 1))
        rows = np.repeat(np.arange(self.num_items + 1), np.diff(together.indptr))
        together.data = (together.data / (norms[rows] * norms[together.indices])).astype(np.float32)
        similar = keep_largest(together, self.settings.neighbours)
        if self.settings.normalise_rows:
            largest = similar.max(axis=1).toarray().ravel()
            similar.data /= np.repeat(np.where(largest > 0, largest, 1), np.diff(similar.indptr)).astype(np.float32)
        self.similarities.store(similar)

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        recent = batch.items if self.settings.recent_items is None else batch.items.last(self.settings.recent_items)
        weights = self.settings.recency_decay ** ages(recent.offsets).float()
        history = weighted_histories(recent.values, recent.offsets, weights, num_items=self.num_items)
        if self.settings.recency_decay == 1:
            history.data[:] = 1  # an item taken twice votes once
        backfill = (BACKFILL * self.popularity / self.popularity.max().clamp(min=1)).cpu()
        votes = history @ self.similarities.matrix()
        scores = backfill.repeat(batch.num_requests, 1)
        rows = np.repeat(np.arange(batch.num_requests), np.diff(votes.indptr))
        scores[torch.from_numpy(rows), torch.from_numpy(votes.indices).long()] += torch.from_numpy(votes.data).float()
        return top_items(scores, batch, k)


def _taken(log: Interactions) -> sp.csr_matrix:
    """Binary users x items [U + 1, N + 1]: who took what."""
    shape = (log.num_users + 1, log.num_items + 1)
    taken = sp.csr_matrix((np.ones(len(log), np.float32), (log.user_ids, log.item_ids)), shape=shape)
    taken.data[:] = 1
    return taken


def _close_pairs(log: Interactions, penalty: NDArray[np.float64], window: int, decay: float) -> sp.csr_matrix:
    """Sum over users and pairs of events at most `window` apart, [N + 1, N + 1], symmetric."""
    shape = (log.num_items + 1, log.num_items + 1)
    total = sp.csr_matrix(shape, dtype=np.float32)
    for distance in range(1, window + 1):
        same = log.user_ids[distance:] == log.user_ids[:-distance]
        if not same.any():
            break
        earlier, later = log.item_ids[:-distance][same], log.item_ids[distance:][same]
        weight = (decay ** (distance - 1) * penalty[log.user_ids[distance:][same]]).astype(np.float32)
        total = total + sp.csr_matrix((weight, (earlier, later)), shape=shape)
    return (total + total.T).tocsr()


def keep_largest(matrix: sp.csr_matrix, count: int) -> sp.csr_matrix:
    """The `count` largest entries of each row; of equal ones those with the smaller column."""
    lengths = np.diff(matrix.indptr)
    rows = np.repeat(np.arange(matrix.shape[0]), lengths)
    order = np.lexsort((matrix.indices, -matrix.data, rows))
    rank = np.arange(len(order)) - np.repeat(matrix.indptr[:-1], lengths)
    kept = order[rank < count]
    return sp.csr_matrix((matrix.data[kept], (rows[kept], matrix.indices[kept])), shape=matrix.shape)
