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

Shapes: B requests, N items.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from pydantic import Field
from torch import Tensor

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.neighbours.sparse_rows import SparseRows
from nextitem.neighbours.swing_similarities import swing_similarities
from nextitem.neighbours.votes import recent_history, top_voted, voted_scores


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
        config = self.config
        similarities = swing_similarities(
            train.interactions,
            neighbours=config.neighbours,
            alpha=config.alpha,
            has_user_weights=config.user_weights,
            takers=config.takers,
        )
        if config.normalise_rows:
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
