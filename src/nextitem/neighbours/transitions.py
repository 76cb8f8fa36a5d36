"""Transitions between items: which items follow one another in the events of a user.

Vectors of transitions: positive pointwise mutual information of the transition counts, reduced by a truncated singular
value decomposition (Levy & Goldberg, Neural Word Embedding as Implicit Matrix Factorization, 2014).

Shapes: N items, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from nextitem.core.interactions import Interactions

_NOISE = 1e-5  # shorter vectors, relative to the largest singular value, are rounding errors


def count_transitions(log: Interactions, lag_weights: Sequence[float]) -> sp.csr_matrix:
    """Return weighted counts of transitions [N + 1, N + 1] from the row's item to a later item of the same user.

    `lag_weights` are the weights of a transition to the next event, to the one after it, and so on.
    """
    shape = (log.num_items + 1, log.num_items + 1)
    total = sp.csr_matrix(shape, dtype=np.float32)
    for lag, weight in enumerate(lag_weights, start=1):
        is_same_user = log.user_ids[lag:] == log.user_ids[:-lag]
        earlier, later = log.item_ids[:-lag][is_same_user], log.item_ids[lag:][is_same_user]
        total = total + sp.csr_matrix((np.full(len(earlier), weight, np.float32), (earlier, later)), shape=shape)
    return total


def item_transitions(log: Interactions, lag_weights: Sequence[float], *, backward: float) -> sp.csr_matrix:
    """Return row-normalised transitions [N + 1, N + 1] between events of the same user, for lags 1, 2, ..."""
    total = count_transitions(log, lag_weights)
    total = (total + backward * total.T).tocsr()
    sums = np.asarray(total.sum(axis=1)).ravel()
    total.data /= np.repeat(np.where(sums > 0, sums, 1), np.diff(total.indptr)).astype(np.float32)
    return total


def positive_information(counts: sp.csr_matrix) -> sp.csr_matrix:
    """Return max(0, log p(a, b) / (p(a) p(b))) of each stored entry of symmetric counts of pairs (a, b)."""
    sums, entries = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel(), counts.tocoo()
    ratio = entries.data * sums.sum() / (sums[entries.row] * sums[entries.col])
    result = sp.csr_matrix(
        (np.log(np.maximum(ratio, 1)).astype(np.float32), (entries.row, entries.col)), shape=counts.shape
    )
    result.eliminate_zeros()
    return result


def transition_vectors(log: Interactions, lag_weights: Sequence[float], width: int, *, seed: int) -> Tensor:
    """Return a unit vector for each item [N, W]; items that are followed and preceded by the same items are near.

    W is `width`, or the number of items if that is smaller. The direction of a transition does not count, and neither
    do transitions from an item to itself. Items without an informative transition have a row of NaN.
    """
    from sklearn.utils.extmath import randomized_svd

    counts = count_transitions(log, lag_weights)[1:, 1:]
    counts = (counts + counts.T).tocsr()
    counts.setdiag(0)
    counts.eliminate_zeros()
    information = positive_information(counts)
    width = min(width, log.num_items)
    if not information.nnz:
        return torch.full((log.num_items, width), torch.nan)
    left, values, _ = randomized_svd(information, width, random_state=seed % 2**32)
    vectors = torch.from_numpy(np.asarray(left * values, dtype=np.float32))
    lengths = vectors.norm(dim=1, keepdim=True)
    has_transition = torch.from_numpy(np.diff(information.indptr) > 0)[:, None]
    return torch.where(has_transition & (lengths > _NOISE * float(values[0])), vectors / lengths, torch.nan)
