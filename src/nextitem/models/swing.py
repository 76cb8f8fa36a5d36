"""Swing: items shared by pairs of users who have little else in common, after Yang et al. (arXiv 2010.05525).

Two users who both have items i and j form a swing between the two items. It counts the more, the fewer other items the
two share: similar users agree by chance on many items, while a true link between two items occurs in users who differ.
A request sums the similarities of its recent items, as item-cf does.

    s_ij = sum over pairs {u, v} in U_i and U_j of  w_u w_v / (alpha + |I_u and I_v|),    w_u = 1 / sqrt(|I_u|)

Notable
- w_u is Alibaba's weight for active users; with `user_weights` off the sum is the paper's own.
- The number of pairs of users grows with the square of an item's users. Of an item with more than `takers` users, only
  a sample with a fixed seed counts, both in swings and in |I_u and I_v|; w_u counts all items. |I_u| is of distinct
  items.
- `alpha` of the paper is 1.
- Rows are scaled so that an item's best neighbour has 1, as in item-cf; otherwise items with many users would dominate.
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

BLOCK_PAIRS = 2**22  # triples (user, user, shared item) in memory of each thread at a time
MAX_SUMS = 2**24  # swings of items in memory at a time: 128 MiB, and as much again while parts are added


class SwingConfig(configs.Config):
    """Settings of Swing."""

    neighbours: int = Field(100, ge=1)
    """Number of similar items stored for each item."""
    alpha: float = Field(1.0, ge=0)
    """Smoothing: the larger alpha is, the less the number of shared items of two users matters."""
    user_weights: bool = True
    """Whether the weight w_u of a user is 1 / sqrt(|I_u|), by the user's number of items, instead of 1."""
    takers: int = Field(200, ge=2)
    """Maximum number of users of an item that form pairs."""
    normalise_rows: bool = True
    """Whether to scale each item's similarities so that the largest is 1."""
    recent_items: int | None = Field(20, ge=1)
    """Number of most recent items of the history that vote; None: all."""
    recency_decay: float = Field(0.8, gt=0, le=1)
    """Factor on the vote of an item for each later event."""


class Swing(Recommender):
    """A recommender that ranks items by their swings with the history."""

    Config = SwingConfig
    config: SwingConfig
    known_answers: ClassVar[tuple[str, ...]] = ("checkerboard", "planted-clusters")
    can_rank_unseen_items = False

    def __init__(self, config: SwingConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.similarities = SparseRows()  # [N + 1, N + 1]; row j: the items for which item j votes

    def fit(self, train: Dataset) -> None:
        """Sum the swings of all pairs of users, as many items at a time as memory allows."""
        user_items = users_by_items(train.interactions.targets_only())
        sizes = np.maximum(np.diff(user_items.indptr), 1)
        weights = 1 / np.sqrt(sizes) if self.config.user_weights else np.ones(len(sizes))
        pairs = _Pairs(_sample_users(user_items, self.config.takers), weights, self.config.alpha)
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
        """Return the similarity of every item to one item, [N + 1]; -inf for items that are no neighbours of it."""
        return self.similarities.row(item, missing=-torch.inf)

    def scores(self, batch: SequenceBatch) -> Tensor:
        """Score every item for each request, [B, N + 1] (roles.ItemScorer)."""
        return voted_scores(self._votes(batch), self.popularity)

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        return top_voted(self._votes(batch), self.popularity, batch, k)

    def _votes(self, batch: SequenceBatch) -> sp.csr_matrix:
        """Return the votes of the histories' recent items, [B, N + 1]."""
        config = self.config
        history = recent_history(batch, count=config.recent_items, decay=config.recency_decay, num_items=self.num_items)
        return history @ self.similarities.matrix()


def _sample_users(user_items: sp.csr_matrix, max_users: int) -> sp.csr_matrix:
    """Return the matrix of users and items with at most `max_users` users of each item, sampled with a fixed seed."""
    entries = user_items.tocoo()
    order = np.lexsort((np.random.default_rng(0).random(user_items.nnz), entries.col))
    begins = np.flatnonzero(np.diff(entries.col[order], prepend=-1))
    rank = np.arange(user_items.nnz) - np.repeat(begins, np.diff(begins, append=user_items.nnz))
    sampled_entries = order[rank < max_users]
    return sp.csr_matrix(
        (entries.data[sampled_entries], (entries.row[sampled_entries], entries.col[sampled_entries])),
        shape=user_items.shape,
    )


class _Pairs:
    """All pairs of users with an item in common, generated again for each pass over a range of items.

    Two crawlers who share 10^4 items form a swing at 10^8 pairs of items. So sums are computed for a range of items,
    which ends as soon as they fill MAX_SUMS entries. Neither all pairs of users nor all sums are in memory together.
    """

    def __init__(self, paired: sp.csr_matrix, weights: NDArray[np.float64], alpha: float) -> None:
        self.paired, self.weights, self.alpha = paired, weights, alpha
        self.item_users = paired.T.tocsr()
        self.item_users.sort_indices()
        rows = np.repeat(np.arange(self.item_users.shape[0]), np.diff(self.item_users.indptr))
        self.keys = rows * len(weights) + self.item_users.indices  # ascending; one key per (item, user)

    def sums(self, low: int) -> sp.csr_matrix:
        """Return the swings of items `low`, ... with all other items, [rows, N + 1]; as many rows as memory allows."""
        total = sp.csr_matrix((self.paired.shape[1] - low, self.paired.shape[1]), dtype=np.float32)
        threads = torch.get_num_threads()
        blocks = self._blocks()
        with ThreadPoolExecutor(threads) as pool:
            while group := list(islice(blocks, threads)):
                swings = partial(self._swings, low_item=low, high_item=low + total.shape[0])
                for part in list(pool.map(swings, group)):
                    rows = min(total.shape[0], part.shape[0])
                    total = total[:rows] + part[:rows]
                    if total.nnz > MAX_SUMS:
                        rows = max(1, int(np.searchsorted(total.indptr, MAX_SUMS // 2)) - 1)
                        total = total[:rows]
        rows = np.repeat(np.arange(low, low + total.shape[0]), np.diff(total.indptr))
        total.data[rows == total.indices] = 0
        total.eliminate_zeros()
        return total

    def _blocks(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield ranges of users and of their partners that have at most about BLOCK_PAIRS items in common."""
        costs, users = self.paired @ np.diff(self.item_users.indptr), len(self.weights)
        for low, high in row_blocks(costs, BLOCK_PAIRS):
            num_parts = -(-int(costs[low]) // BLOCK_PAIRS) if high == low + 1 else 1
            borders = np.linspace(low + 1, users, max(1, num_parts) + 1).astype(int).tolist()
            for first, end in pairwise(borders):
                yield low, high, first, end

    def _swings(self, block: tuple[int, int, int, int], *, low_item: int, high_item: int) -> sp.csr_matrix:
        """Return the swings of items `low_item`, ... with all items that the pairs of one block form.

        There are `high_item` - `low_item` rows, or fewer, if these fill their share of MAX_SUMS.
        """
        shared_items, pair_weights = self._shared(*block)
        weighted = sp.diags_array(pair_weights.astype(np.float32)) @ shared_items
        item_pairs = shared_items[:, low_item:high_item].T.tocsr()  # [items, pairs]
        parts: list[sp.csr_matrix] = []
        entries = 0
        for start, stop in row_blocks(item_pairs @ np.diff(shared_items.indptr), BLOCK_PAIRS):
            parts.append(item_pairs[start:stop] @ weighted)
            entries += parts[-1].nnz
            if entries > MAX_SUMS // (2 * torch.get_num_threads()):
                break
        return sp.vstack(parts, format="csr")

    def _shared(self, low: int, high: int, first: int, end: int) -> tuple[sp.csr_matrix, NDArray[np.float64]]:
        """Return the shared items of pairs of users with two or more of them, [pairs, N + 1], and the pairs' weights.

        The pairs are u < v with u in `low`..`high` - 1 and v in `first`..`end` - 1.
        """
        num_users = len(self.weights)
        rows = self.paired[low:high]
        users = np.repeat(np.arange(low, high), np.diff(rows.indptr))
        places = rows.indices.astype(np.int64) * num_users
        begins = np.searchsorted(self.keys, places + np.maximum(users + 1, first))
        lengths = np.maximum(np.searchsorted(self.keys, places + end) - begins, 0)
        offsets = begins - np.cumsum(lengths) + lengths
        partners = self.item_users.indices[np.repeat(offsets, lengths) + np.arange(lengths.sum())]
        keys, items = np.repeat(users, lengths) * num_users + partners, np.repeat(rows.indices, lengths)
        order = np.argsort(keys, kind="stable")
        keys, items = keys[order], items[order]
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        num_shared = np.diff(starts, append=len(keys))
        has_several = num_shared > 1  # users who share a single item form no swing
        ends = np.concatenate([[0], np.cumsum(num_shared[has_several])])
        pair = keys[starts[has_several]]
        pair_weights = (
            self.weights[pair // num_users] * self.weights[pair % num_users] / (self.alpha + num_shared[has_several])
        )
        columns = items[np.repeat(has_several, num_shared)]
        shared_items = sp.csr_matrix(
            (np.ones(len(columns), np.float32), columns, ends), shape=(len(pair), rows.shape[1])
        )
        return shared_items, pair_weights
