"""Item-CF: items that share users with the history, after Linden, Smith and York (Amazon.com Recommendations, 2003).

Two items are similar if many users have events with both, the more so close together, and if those users have few
other items; similarities are normalised by the items' own counts. A request sums the similarities of its recent items
to every other item.

    w_ij = sum over users of sum over pairs of f(distance) / log(1 + |N(u)|)  /  sqrt(|U(i)| |U(j)|)

Notable
- A user's pairs are all pairs of events, one with i and one with j, at most `window` events apart. So a pair of items
  that recurs counts each time, and w_ij, which is then no cosine, may exceed 1. A user's events 1 2 1 2 1 2 result in
  w_12 = 4.1, the events 1 2 in 0.46 (with two more users who have one of the items each, and without
  `normalise_rows`). On logs with recurring baskets that ranks better. `repeats = "closest"` counts only the closest
  pair of each user.
- Distance between two events of a user is counted in events. That is defined on undated logs too, and a basket
  whose lines share one timestamp keeps its order. f = decay ** (distance - 1), within `window` events; on dated
  logs f can also be multiplied by 0.5 ** (days apart / half_life_days). This factor is off by default, as it gained
  nothing on validation.
- With `window`, `activity_penalty` and `recency_decay` off this is cosine similarity of binary columns, and
  equals the implicit library's CosineRecommender (tested). Without a window a user's pair counts once.
- Items without any similarity to the history follow by popularity, below all similar items.

Shapes: B requests, N items, K returned.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, Literal

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
from nextitem.neighbours.sparse_rows import SparseRows, keep_largest, keep_largest_of_dense, row_blocks, users_by_items
from nextitem.neighbours.votes import DENSE_FROM, recent_history, top_voted, voted_scores

DAY_MS = 86_400_000
BLOCK_COST = 2**22  # pairs that are summed at a time: about 200 MiB


class ItemCFConfig(configs.Config):
    """Settings of ItemCF."""

    neighbours: int = Field(100, ge=1)
    """Number of similar items stored for each item."""
    window: int | None = Field(20, ge=1)
    """Maximum distance in events of two events that form a pair; None: all pairs count, with equal weight."""
    repeats: Literal["all", "closest"] = "all"
    """Pairs of a user's events with the same two items that count, if there is a window: all, or the closest one."""
    decay: float = Field(0.9, gt=0, le=1)
    """Factor on the weight of a pair for each event between its two events."""
    half_life_days: float | None = Field(None, gt=0)
    """Days between two events at which their pair counts half; None: the days have no effect."""
    activity_penalty: bool = True
    """Whether to divide the weight of a user's pairs by log(1 + number of the user's items)."""
    normalise_rows: bool = True
    """Whether to scale each item's similarities so that the largest is 1."""
    recent_items: int | None = Field(20, ge=1)
    """Number of most recent items of the history that vote; None: all."""
    recency_decay: float = Field(0.8, gt=0, le=1)
    """Factor on the vote of an item for each later event."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that have no effect under the other settings, each with the reason."""
        has_window = self.window is not None
        return configs.idle_unless(has_window, "window is none", "repeats", "decay", "half_life_days")


class ItemCF(Recommender):
    """A recommender that ranks items by their similarity to the history."""

    Config = ItemCFConfig
    config: ItemCFConfig
    known_answers: ClassVar[tuple[str, ...]] = ("checkerboard", "planted-clusters")
    can_rank_unseen_items = False

    def __init__(self, config: ItemCFConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.similarities = SparseRows()  # [N + 1, N + 1]; row j: the items for which item j votes

    def fit(self, train: Dataset) -> None:
        """Compute each item's most similar items, a block of items at a time."""
        log = train.interactions.targets_only()
        user_items = users_by_items(log)
        num_items = np.asarray(user_items.sum(axis=1)).ravel()  # of each user
        penalty = 1 / np.log1p(np.maximum(num_items, 1)) if self.config.activity_penalty else np.ones_like(num_items)
        scale = (1 / np.sqrt(np.maximum(np.asarray(user_items.sum(axis=0)).ravel(), 1))).astype(np.float32)
        has_window = self.config.window is not None
        pairs = _ClosePairs(log, penalty, self.config) if has_window else _AllPairs(user_items, penalty)

        def most_similar(block: tuple[int, int]) -> sp.csr_matrix:
            sums, count = pairs.block(*block), self.config.neighbours
            if sums.nnz < DENSE_FROM * sums.shape[0] * sums.shape[1]:
                return keep_largest(_scaled(sums, block[0], scale), count)
            return keep_largest_of_dense(_scaled_dense(sums, block[0], scale), count)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            similarities = sp.vstack(list(pool.map(most_similar, row_blocks(pairs.costs, BLOCK_COST))), format="csr")
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


class _AllPairs:
    """Sums of weights of the users who have both items of a pair.

    `costs [N + 1]` is the number of terms in the sums of each item.
    """

    def __init__(self, user_items: sp.csr_matrix, penalty: NDArray[np.float64]) -> None:
        self.weighted = (sp.diags_array(penalty.astype(np.float32)) @ user_items).tocsr()
        self.item_users = user_items.T.tocsr()
        self.costs = self.item_users @ np.diff(user_items.indptr)

    def block(self, low: int, high: int) -> sp.csr_matrix:
        """Return rows `low`..`high` - 1 of the sums [N + 1, N + 1]."""
        return self.item_users[low:high] @ self.weighted


class _ClosePairs:
    """Sums over pairs of a user's events at most `window` events apart; pairs farther apart weigh less."""

    def __init__(self, log: Interactions, penalty: NDArray[np.float64], settings: ItemCFConfig) -> None:
        assert settings.window is not None
        self.is_once = settings.repeats == "closest"
        self.items = log.item_ids
        self.by_item = np.argsort(log.item_ids, kind="stable")
        counts = np.bincount(log.item_ids, minlength=log.num_items + 1)
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.first = log.offsets[log.user_ids - 1]  # first event of each event's user, ...
        self.end = log.offsets[log.user_ids]  # ... and one past the user's last event
        self.weight = penalty[log.user_ids].astype(np.float32)
        self.days: NDArray[np.float64] | None = None
        if settings.half_life_days is not None and log.timestamps is not None:
            self.days = log.timestamps / (DAY_MS * settings.half_life_days)  # in half-lives
        distances = np.arange(1, settings.window + 1)
        self.steps = np.concatenate([-distances, distances])
        self.decays = settings.decay ** (np.abs(self.steps) - 1).astype(np.float32)
        self.costs = len(self.steps) * counts

    def block(self, low: int, high: int) -> sp.csr_matrix:
        """Return rows `low`..`high` - 1 of the sums [N + 1, N + 1]."""
        total = None
        for events in self._chunks(self.by_item[self.starts[low] : self.starts[high]]):
            part = self._sums(events, low, high)
            total = part if total is None else total + part
        return total if total is not None else sp.csr_matrix((high - low, len(self.starts) - 1), dtype=np.float32)

    def _chunks(self, events: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Split events, sorted by item and user, into chunks that form at most about BLOCK_COST pairs each.

        If pairs count once a user, the events of a user with an item stay together.
        """
        sizes = np.ones(len(events), np.int64)
        if self.is_once:
            is_same_group = (np.diff(self.items[events]) == 0) & (np.diff(self.first[events]) == 0)
            sizes = np.diff(np.flatnonzero(np.concatenate([[True], ~is_same_group, [True]])))
        ends = np.concatenate([[0], np.cumsum(sizes)])
        for low, high in row_blocks(sizes * len(self.steps), BLOCK_COST):
            yield events[ends[low] : ends[high]]

    def _sums(self, events: NDArray[np.int64], low: int, high: int) -> sp.csr_matrix:
        """Return the part of the sums that these events, of items `low`..`high` - 1, add, [high - low, N + 1]."""
        others = events[:, None] + self.steps
        is_inside = (others >= self.first[events][:, None]) & (others < self.end[events][:, None])
        counts = is_inside.sum(axis=1)
        columns = self.items[others[is_inside]]
        weights = (self.weight[events][:, None] * self.decays)[is_inside]
        if self.days is not None:
            days_apart = self.days[others[is_inside]] - np.repeat(self.days[events], counts)
            weights *= np.exp2(-np.abs(days_apart)).astype(np.float32)
        rows = self.items[events] - low
        if self.is_once:
            row, user = np.repeat(rows, counts), np.repeat(self.first[events], counts)
            closest = _first_of_each(row, user, columns, weights)
            columns, weights = columns[closest], weights[closest]
            ends = np.cumsum(np.bincount(row[closest], minlength=high - low))
        else:
            ends = np.cumsum(np.bincount(rows, weights=counts, minlength=high - low)).astype(np.int64)
        pairs = sp.csr_matrix((weights, columns, np.concatenate([[0], ends])), shape=(high - low, len(self.starts) - 1))
        pairs = pairs.tocsc().tocsr()  # sorts columns in linear time
        pairs.sum_duplicates()
        return pairs


def _first_of_each(
    rows: NDArray[np.int32], users: NDArray[np.int64], columns: NDArray[np.int32], weights: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Return the indices of the largest weight of each (row, user, column), sorted by row."""
    order: NDArray[np.int64] = np.lexsort((-weights, columns, users, rows))
    keys = np.stack([rows[order], users[order], columns[order]])
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = (np.diff(keys, axis=1) != 0).any(axis=0)
    return order[is_first]


def _scaled(sums: sp.csr_matrix, low: int, scale: NDArray[np.float32]) -> sp.csr_matrix:
    """Return rows `low`, ... of the sums divided by the items' norms, without an item's similarity to itself."""
    rows = np.repeat(np.arange(low, low + sums.shape[0]), np.diff(sums.indptr))
    sums.data *= scale[rows] * scale[sums.indices]
    sums.data[rows == sums.indices] = 0
    sums.eliminate_zeros()
    return sums


def _scaled_dense(sums: sp.csr_matrix, low: int, scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the result of `_scaled` as a dense array, which is half of the work if most pairs of items share users."""
    values: NDArray[np.float32] = sums.toarray()
    values *= scale[low : low + len(values), None] * scale
    values[np.arange(len(values)), np.arange(low, low + len(values))] = 0
    return values
