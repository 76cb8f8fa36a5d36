"""User-CF: user-based collaborative filtering, after Resnick et al. (GroupLens, 1994).

A request's history is compared with those of all users; rare items count more than frequent ones. The most similar
users vote for the items of their histories. The history comes from the request, so that visitors whom training has not
seen are served, and new events count at once.

    w_uv = sum over i in N(u) and N(v) of 1 / log(1 + |U(i)|)  /  sqrt(|N(u)| |N(v)|)
    score(i) = sum over the most similar v of w_uv [i in N(v)]

Notable
- Events are binary, weighted by log(1 + |U(i)|) after Breese, Heckerman and Kadie (1998); GroupLens' ratings are not
  used.
- `recency_decay` weights the items of the request's history by their age; 1 is the formula above.
- A user of the log never votes on their own request.
- An item with more than `takers` users is compared only with the last `takers` of them: it is the least informative,
  and a request would spend most of its time on it.
- Items that none of the similar users have follow by popularity.

Shapes: B requests, U users, N items, K returned.
"""

from __future__ import annotations

from typing import ClassVar, cast

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
from nextitem.core.interactions import Interactions
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.neighbours.sparse_rows import SparseRows, keep_largest, row_blocks, users_by_items
from nextitem.neighbours.votes import recent_history, top_voted, voted_scores

BLOCK_COST = 2**22  # terms that are summed at a time: tens of MiB


class UserCFConfig(configs.Config):
    """Settings of UserCF."""

    neighbours: int = Field(100, ge=1)
    """Number of most similar users who vote."""
    takers: int | None = Field(1000, ge=1)
    """Number of last users of an item with whom a history is compared; None: all."""
    recent_items: int | None = Field(50, ge=1)
    """Number of most recent items of the history that are compared; None: all."""
    recency_decay: float = Field(0.7, gt=0, le=1)
    """Factor on the weight of an item for each later event."""


class UserCF(Recommender):
    """A recommender that ranks items by the votes of users with a similar history."""

    Config = UserCFConfig
    config: UserCFConfig
    known_answers: ClassVar[tuple[str, ...]] = ("checkerboard", "planted-clusters")
    can_rank_unseen_items = False
    user_keys: Tensor
    user_rows: Tensor

    def __init__(self, config: UserCFConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.shares = SparseRows()  # [N + 1, U + 1]; row i: the addend of item i to the similarity of each of its users
        # [U + 1, N + 1]; row v: the items for which user v votes. The bundles of runs store it by the name "taken".
        self.register_module("taken", SparseRows())
        self.register_buffer("user_keys", torch.zeros(1, dtype=torch.int64))  # [U + 1] of training users, ascending
        self.register_buffer("user_rows", torch.zeros(1, dtype=torch.int64))  # [U + 1] the row of each key

    @property
    def user_items(self) -> SparseRows:
        """The items of each training user, [U + 1, N + 1]."""
        return cast(SparseRows, self.get_submodule("taken"))

    def fit(self, train: Dataset) -> None:
        """Store the items of each user, and the term that each shared item adds to a similarity."""
        log = train.interactions.targets_only()
        user_items = users_by_items(log)
        sizes = np.asarray(user_items.sum(axis=1)).ravel()
        counts = np.asarray(user_items.sum(axis=0)).ravel()
        shares = user_items.T.tocsr() if self.config.takers is None else last_takers(log, self.config.takers)
        weight = 1 / np.log1p(np.maximum(counts, 1))
        shares.data = (np.repeat(weight, np.diff(shares.indptr)) / np.sqrt(sizes[shares.indices])).astype(np.float32)
        self.user_keys, self.user_rows = torch.from_numpy(train.users.keys).sort()
        self.shares.store(shares)
        self.user_items.store(user_items)

    def similar_users(self, batch: SequenceBatch) -> sp.csr_matrix:
        """Return the similarities w_uv of the most similar users, [B, U + 1]."""
        config = self.config
        history = recent_history(batch, count=config.recent_items, decay=config.recency_decay, num_items=self.num_items)
        lengths = np.diff(history.indptr)
        shares = self.shares.matrix()
        costs = _costs(history, shares)
        history.data /= np.repeat(np.sqrt(np.maximum(lengths, 1)), lengths).astype(np.float32)
        parts = []
        for low, high in row_blocks(costs, BLOCK_COST):
            similar = history[low:high] @ shares
            if batch.user_ids is not None:
                own_rows = np.repeat(self._rows_of(batch.user_ids[low:high]), np.diff(similar.indptr))
                similar.data[similar.indices == own_rows] = 0
                similar.eliminate_zeros()
            parts.append(keep_largest(similar, config.neighbours))
        return parts[0] if len(parts) == 1 else sp.vstack(parts, format="csr")

    def scores(self, batch: SequenceBatch) -> Tensor:
        """Score every item for each request, [B, N + 1] (roles.ItemScorer)."""
        return voted_scores(self.similar_users(batch) @ self.user_items.matrix(), self.popularity)

    def _rows_of(self, user_keys: Tensor) -> NDArray[np.int64]:
        """Return the rows of training users with these keys, [B]; 0 for another user."""
        places = torch.searchsorted(self.user_keys, user_keys.cpu()).clamp(max=len(self.user_keys) - 1)
        rows = self.user_rows[places].masked_fill(self.user_keys[places] != user_keys.cpu(), 0)
        return rows.numpy()

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        similar, user_items = self.similar_users(batch), self.user_items.matrix()
        answers = []
        for low, high in row_blocks(_costs(similar, user_items), BLOCK_COST):
            part = batch if high - low == batch.num_requests else batch.select(torch.arange(low, high))
            answers.append(top_voted(similar[low:high] @ user_items, self.popularity, part, k))
        return Recommendations(
            torch.cat([answer.item_ids for answer in answers]), torch.cat([answer.scores for answer in answers])
        )


def _costs(left: sp.csr_matrix, right: sp.csr_matrix) -> NDArray[np.int64]:
    """Return the number of terms that each row of `left @ right` sums up."""
    lengths = np.concatenate([[0], np.cumsum(np.diff(right.indptr)[left.indices], dtype=np.int64)])
    costs: NDArray[np.int64] = lengths[left.indptr[1:]] - lengths[left.indptr[:-1]]
    return costs


def last_takers(log: Interactions, count: int) -> sp.csr_matrix:
    """Return the last `count` users of each item, binary [N + 1, U + 1]; undated: those with the largest numbers."""
    times = log.user_ids if log.timestamps is None else log.timestamps
    order = np.lexsort((log.user_ids, times, log.item_ids))[::-1]  # by item, the last event first
    pairs = log.item_ids[order].astype(np.int64) * (log.num_users + 1) + log.user_ids[order]
    order = order[np.sort(np.unique(pairs, return_index=True)[1])]  # a user's last event with each item
    items: NDArray[np.int32] = log.item_ids[order]
    begins = np.flatnonzero(np.diff(items, prepend=-1))
    rank = np.arange(len(items)) - np.repeat(begins, np.diff(begins, append=len(items)))
    last_events = order[rank < count]
    parts = (np.ones(len(last_events), np.float32), (log.item_ids[last_events], log.user_ids[last_events]))
    return sp.csr_matrix(parts, shape=(log.num_items + 1, log.num_users + 1))
