"""Swing: items that pairs of users took who have little else in common, after Yang et al. (arXiv 2010.05525).

Two users who both took items i and j form a swing between the two. It says the more, the fewer other items they share:
a chance agreement of two alike users repeats itself, while a true link between two items shows in users who differ. A
request sums the similarities of its recent items, as item-cf does.

    s_ij = sum over pairs {u, v} in U_i and U_j of  w_u w_v / (alpha + |I_u and I_v|),    w_u = 1 / sqrt(|I_u|)

Notable
- w_u is Alibaba's weight for active users; with `user_weights` off the sum is the paper's own.
- Pairs of users grow with the square of an item's users. An item with more than `takers` users counts a seeded sample
  of them, in swings and in |I_u and I_v| alike; w_u counts all items. |I_u| is of distinct items.
- `alpha` of the paper is 1.
- Rows are scaled so that an item's best neighbour has 1, as in item-cf: else items with many users shout others down.
- Items without any similarity to the history follow by popularity.

Shapes: B requests, U users, N items, P pairs of users.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.neighbours.sparse_rows import SparseRows, keep_largest, users_by_items
from nextitem.neighbours.votes import recent_history, top_voted, voted_scores

BLOCK_PAIRS = 2**22  # (user, user, shared item) that are held at a time


class SwingConfig(configs.Config):
    """Settings of Swing."""

    neighbours: int = Field(100, ge=1)  # similar items kept for each item
    alpha: float = Field(1.0, ge=0)  # smooths: the larger, the less it matters what else two users share
    user_weights: bool = True  # w_u = 1 / sqrt(|I_u|) instead of 1
    takers: int = Field(200, ge=2)  # users of an item that form pairs, at most
    normalise_rows: bool = True  # scale each item's similarities so that the largest is 1
    recent_items: int | None = Field(20, ge=1)  # items of the history that vote; None: all
    recency_decay: float = Field(0.8, gt=0, le=1)  # factor on a vote for each event that followed it


class Swing(Recommender):
    """Ranks items by their swings with the history."""

    Config = SwingConfig
    known_answers: ClassVar[tuple[str, ...]] = ("checkerboard", "planted-clusters")
    can_rank_unseen_items = False

    def __init__(self, config: SwingConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.settings = config
        self.similarities = SparseRows()  # [N + 1, N + 1], row j: what j votes for

    def fit(self, train: Dataset) -> None:
        """Sums the swings of all pairs of users, a block of users at a time."""
        taken = users_by_items(train.interactions.targets_only())
        sizes = np.maximum(np.diff(taken.indptr), 1)
        weights = 1 / np.sqrt(sizes) if self.settings.user_weights else np.ones(len(sizes))
        paired = _sampled(taken, self.settings.takers)
        takers = paired.T.tocsr()
        takers.sort_indices()

        def swings(block: tuple[int, int]) -> sp.csr_matrix:
            return _swings(paired, takers, weights, self.settings.alpha, *block)

        total = sp.csr_matrix((self.num_items + 1, self.num_items + 1), dtype=np.float32)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for part in pool.map(swings, _blocks(paired @ np.diff(takers.indptr))):
                total = total + part
        similarities = keep_largest(total + total.T, self.settings.neighbours)
        if self.settings.normalise_rows:
            largest = similarities.max(axis=1).toarray().ravel()
            similarities.data /= np.repeat(np.where(largest > 0, largest, 1), np.diff(similarities.indptr))
        self.similarities.store(similarities)

    def similarity_to(self, item: int) -> Tensor:
        """How similar every item is to an item, [N + 1]; -inf for items that are no neighbours of it."""
        return self.similarities.row(item, missing=-torch.inf)

    def scores(self, batch: SequenceBatch) -> Tensor:
        """Score every item for each request, [B, N + 1] (roles.ItemScorer)."""
        return voted_scores(self._votes(batch), self.popularity)

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        return top_voted(self._votes(batch), self.popularity, batch, k)

    def _votes(self, batch: SequenceBatch) -> sp.csr_matrix:
        """Return the votes of the histories' recent items, [B, N + 1]."""
        chosen = self.settings
        history = recent_history(batch, count=chosen.recent_items, decay=chosen.recency_decay, num_items=self.num_items)
        return history @ self.similarities.matrix()


def _sampled(taken: sp.csr_matrix, count: int) -> sp.csr_matrix:
    """Users x items with at most `count` users of each item, drawn by a fixed seed."""
    entries = taken.tocoo()
    order = np.lexsort((np.random.default_rng(0).random(taken.nnz), entries.col))
    begins = np.flatnonzero(np.diff(entries.col[order], prepend=-1))
    rank = np.arange(taken.nnz) - np.repeat(begins, np.diff(begins, append=taken.nnz))
    kept = order[rank < count]
    return sp.csr_matrix((entries.data[kept], (entries.row[kept], entries.col[kept])), shape=taken.shape)


def _blocks(costs: NDArray[np.float32]) -> Iterator[tuple[int, int]]:
    """Ranges of users whose costs sum to BLOCK_PAIRS at most (or that hold one user)."""
    total, low = np.cumsum(costs.astype(np.float64)), 0
    while low < len(costs):
        before = total[low - 1] if low else 0.0
        high = max(low + 1, int(np.searchsorted(total, before + BLOCK_PAIRS, side="right")))
        yield low, high
        low = high


def _swings(
    paired: sp.csr_matrix, takers: sp.csr_matrix, weights: NDArray[np.float64], alpha: float, low: int, high: int
) -> sp.csr_matrix:
    """Swings [N + 1, N + 1] of pairs u < v with u in `low`..`high` - 1; each pair of items once, i < j."""
    rows = paired[low:high]
    users = np.repeat(np.arange(low, high), np.diff(rows.indptr))
    counts = np.diff(takers.indptr)[rows.indices]
    shift = takers.indptr[rows.indices] - np.cumsum(counts) + counts
    others = takers.indices[np.repeat(shift, counts) + np.arange(counts.sum())].astype(np.int64)
    keys = np.repeat(users, counts) * len(weights) + others
    later = others > np.repeat(users, counts)
    keys, items = keys[later], np.repeat(rows.indices, counts)[later]
    order = np.argsort(keys, kind="stable")
    keys, items = keys[order], items[order]
    begins = np.flatnonzero(np.diff(keys, prepend=-1))
    shared = np.diff(begins, append=len(keys))
    several = shared > 1  # who shares one item forms no swing
    kept = np.repeat(several, shared)
    ends = np.concatenate([[0], np.cumsum(shared[several])])
    pair = keys[begins[several]]
    weight = weights[pair // len(weights)] * weights[pair % len(weights)] / (alpha + shared[several])
    both = sp.csr_matrix((np.ones(ends[-1], np.float32), items[kept], ends), shape=(len(pair), paired.shape[1]))
    return sp.triu(both.T @ (sp.diags_array(weight.astype(np.float32)) @ both), k=1).tocsr()
