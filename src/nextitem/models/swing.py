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
from functools import partial
from itertools import islice, pairwise
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
from nextitem.neighbours.sparse_rows import SparseRows, keep_largest, row_blocks, users_by_items
from nextitem.neighbours.votes import recent_history, top_voted, voted_scores

BLOCK_PAIRS = 2**22  # (user, user, shared item) that are held at a time, by each thread
MOST_SUMS = 2**24  # swings of items that are held at a time: 128 MiB, and as much again while parts are added


class SwingConfig(configs.Config):
    """Settings of Swing."""

    neighbours: int = Field(100, ge=1)
    """Similar items kept for each item."""
    alpha: float = Field(1.0, ge=0)
    """Smooths: the larger, the less it matters what else two users share."""
    user_weights: bool = True
    """w_u = 1 / sqrt(|I_u|) instead of 1."""
    takers: int = Field(200, ge=2)
    """Users of an item that form pairs, at most."""
    normalise_rows: bool = True
    """Scale each item's similarities so that the largest is 1."""
    recent_items: int | None = Field(20, ge=1)
    """Items of the history that vote; None: all."""
    recency_decay: float = Field(0.8, gt=0, le=1)
    """Factor on a vote for each event that followed it."""


class Swing(Recommender):
    """Ranks items by their swings with the history."""

    Config = SwingConfig
    config: SwingConfig
    known_answers: ClassVar[tuple[str, ...]] = ("checkerboard", "planted-clusters")
    can_rank_unseen_items = False

    def __init__(self, config: SwingConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.similarities = SparseRows()  # [N + 1, N + 1], row j: what j votes for

    def fit(self, train: Dataset) -> None:
        """Sum the swings of all pairs of users, as many items at a time as memory allows."""
        taken = users_by_items(train.interactions.targets_only())
        sizes = np.maximum(np.diff(taken.indptr), 1)
        weights = 1 / np.sqrt(sizes) if self.config.user_weights else np.ones(len(sizes))
        pairs = _Pairs(_sampled(taken, self.config.takers), weights, self.config.alpha)
        parts, low = [], 0
        while low <= self.num_items:
            sums = pairs.sums(low)
            parts.append(keep_largest(sums, self.config.neighbours))
            low += sums.shape[0]
        similarities = sp.vstack(parts, format="csr")
        if self.config.normalise_rows:
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
        chosen = self.config
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


class _Pairs:
    """All pairs of users with an item in common, made anew for each pass over a range of items.

    Two crawlers who share 10^4 items form a swing at 10^8 pairs of items. So sums are made for a range of items, which
    ends where they fill MOST_SUMS entries; the pairs of users are never held together, nor are the sums.
    """

    def __init__(self, paired: sp.csr_matrix, weights: NDArray[np.float64], alpha: float) -> None:
        self.paired, self.weights, self.alpha = paired, weights, alpha
        self.takers = paired.T.tocsr()
        self.takers.sort_indices()
        rows = np.repeat(np.arange(self.takers.shape[0]), np.diff(self.takers.indptr))
        self.keys = rows * len(weights) + self.takers.indices  # rising: where a user stands among an item's takers

    def sums(self, low: int) -> sp.csr_matrix:
        """Return the swings of items `low`, ... with all items, [as many as fit, N + 1], none with itself."""
        total = sp.csr_matrix((self.paired.shape[1] - low, self.paired.shape[1]), dtype=np.float32)
        threads = torch.get_num_threads()
        blocks = self._blocks()
        with ThreadPoolExecutor(threads) as pool:
            while group := list(islice(blocks, threads)):
                swings = partial(self._swings, low_item=low, high_item=low + total.shape[0])
                for part in list(pool.map(swings, group)):
                    rows = min(total.shape[0], part.shape[0])
                    total = total[:rows] + part[:rows]
                    if total.nnz > MOST_SUMS:
                        rows = max(1, int(np.searchsorted(total.indptr, MOST_SUMS // 2)) - 1)
                        total = total[:rows]
        rows = np.repeat(np.arange(low, low + total.shape[0]), np.diff(total.indptr))
        total.data[rows == total.indices] = 0
        total.eliminate_zeros()
        return total

    def _blocks(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield ranges of users and of their partners, who have about BLOCK_PAIRS items in common at most."""
        costs, users = self.paired @ np.diff(self.takers.indptr), len(self.weights)
        for low, high in row_blocks(costs, BLOCK_PAIRS):
            parts = -(-int(costs[low]) // BLOCK_PAIRS) if high == low + 1 else 1
            borders = np.linspace(low + 1, users, max(1, parts) + 1).astype(int).tolist()
            for first, end in pairwise(borders):
                yield low, high, first, end

    def _swings(self, block: tuple[int, int, int, int], *, low_item: int, high_item: int) -> sp.csr_matrix:
        """Return the swings of items `low_item`, ... with all items that the pairs of one block form.

        There are `high_item` - `low_item` rows, or fewer, if these fill their share of MOST_SUMS.
        """
        both, weight = self._shared(*block)
        weighted = sp.diags_array(weight.astype(np.float32)) @ both
        own = both[:, low_item:high_item].T.tocsr()  # [items, pairs]
        parts: list[sp.csr_matrix] = []
        entries = 0
        for start, stop in row_blocks(own @ np.diff(both.indptr), BLOCK_PAIRS):
            parts.append(own[start:stop] @ weighted)
            entries += parts[-1].nnz
            if entries > MOST_SUMS // (2 * torch.get_num_threads()):
                break
        return sp.vstack(parts, format="csr")

    def _shared(self, low: int, high: int, first: int, end: int) -> tuple[sp.csr_matrix, NDArray[np.float64]]:
        """Return what pairs of users have in common, if it is two items or more, [pairs, N + 1], and what they count.

        Of pairs u < v with u in `low`..`high` - 1 and v in `first`..`end` - 1.
        """
        count = len(self.weights)
        rows = self.paired[low:high]
        users = np.repeat(np.arange(low, high), np.diff(rows.indptr))
        places = rows.indices.astype(np.int64) * count
        begins = np.searchsorted(self.keys, places + np.maximum(users + 1, first))
        lengths = np.maximum(np.searchsorted(self.keys, places + end) - begins, 0)
        shift = begins - np.cumsum(lengths) + lengths
        others = self.takers.indices[np.repeat(shift, lengths) + np.arange(lengths.sum())]
        keys, items = np.repeat(users, lengths) * count + others, np.repeat(rows.indices, lengths)
        order = np.argsort(keys, kind="stable")
        keys, items = keys[order], items[order]
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        shared = np.diff(starts, append=len(keys))
        several = shared > 1  # who shares one item forms no swing
        ends = np.concatenate([[0], np.cumsum(shared[several])])
        pair = keys[starts[several]]
        weight = self.weights[pair // count] * self.weights[pair % count] / (self.alpha + shared[several])
        columns = items[np.repeat(several, shared)]
        both = sp.csr_matrix((np.ones(len(columns), np.float32), columns, ends), shape=(len(pair), rows.shape[1]))
        return both, weight
