"""Swing similarities: how often two items are shared by pairs of users who have little else in common.

    s_ij = sum over pairs {u, v} in U_i and U_j of  w_u w_v / (alpha + |I_u and I_v|),    w_u = 1 / sqrt(|I_u|)

models/swing.py explains them.

Shapes: U users, N items, P pairs of users.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice, pairwise

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from nextitem.core.interactions import Interactions
from nextitem.neighbours.sparse_rows import keep_largest, row_blocks, users_by_items

BLOCK_PAIRS = 2**22  # triples (user, user, shared item) in memory of each thread at a time
MAX_SUMS = 2**24  # swings of items in memory at a time: 128 MiB, and as much again while parts are added


def swing_similarities(
    log: Interactions, *, neighbours: int, alpha: float, has_user_weights: bool, takers: int
) -> sp.csr_matrix:
    """Return the swings of each item with its `neighbours` most similar items, [N + 1, N + 1].

    Args:
        log: the events; those that may not be targets do not count.
        neighbours: number of items stored for each item.
        alpha: smoothing.
        has_user_weights: whether w_u is 1 / sqrt(|I_u|) instead of 1.
        takers: maximum number of users of an item that form pairs.

    """
    user_items = users_by_items(log.targets_only())
    sizes = np.maximum(np.diff(user_items.indptr), 1)
    weights = 1 / np.sqrt(sizes) if has_user_weights else np.ones(len(sizes))
    pairs = _Pairs(_sample_users(user_items, takers), weights, alpha)
    parts, low = [], 0
    while low < user_items.shape[1]:
        sums = pairs.sums(low)
        parts.append(keep_largest(sums, neighbours))
        low += sums.shape[0]
    return sp.vstack(parts, format="csr")


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
