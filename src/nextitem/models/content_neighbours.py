"""Content neighbours: items whose content is similar to that of the history (Pazzani and Billsus, 1997, and later).

A profile is the decayed sum of the history's content vectors, each of length 1; items are ranked by their cosine with
it. Nothing is learned from events, so an item can be recommended from the day it is added.

    p = sum over the last events j of decay ** age(j) * c_j / |c_j|,    score(i) = p c_i / |c_i|

Notable
- An item of the history gets no score from itself. If repeats are allowed, each would otherwise head its own list.
- Items without content have the score 0.

Shapes: B requests, N items, D content width, K returned.
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
from nextitem.core.config import Requirement
from nextitem.core.dataset import Dataset
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.neighbours.ann_index import AnnIndex, AnnIndexConfig, ExactIndex
from nextitem.neighbours.votes import recent_history
from nextitem.ops.topk import stable_topk


class ContentNeighboursConfig(configs.Config):
    """Settings of ContentNeighbours."""

    recent_items: int | None = Field(10, ge=1)
    """Number of most recent items of the history in the profile; None: all."""
    recency_decay: float = Field(0.7, gt=0, le=1)
    """Factor on the weight of an item for each later event."""
    index: AnnIndexConfig = Field(ExactIndex(), discriminator="kind")
    """Index that searches for the nearest items."""


class ContentNeighbours(Recommender):
    """A recommender that ranks items by the similarity of their content to the history's."""

    Config = ContentNeighboursConfig
    config: ContentNeighboursConfig
    known_answers: ClassVar[tuple[str, ...]] = ("planted-clusters",)
    can_rank_unseen_items = True
    needs: ClassVar[frozenset[Requirement]] = frozenset({"content"})
    directions: Tensor

    def __init__(self, config: ContentNeighboursConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        assert catalog.content is not None, "the pipeline adds content if `needs` contains it"
        self.register_buffer("directions", torch.zeros(catalog.content.shape))
        self.index = AnnIndex(config.index)

    def fit(self, train: Dataset) -> None:
        """Scale the content vectors to length 1 and index them."""
        assert self.catalog.content is not None
        self.directions = torch.nn.functional.normalize(self.catalog.content, dim=1)
        self.index.build(self.directions)

    def scores(self, batch: SequenceBatch) -> Tensor:
        """Score every item for each request, [B, N + 1] (roles.ItemScorer)."""
        history = self._history(batch)
        scores = self._profiles(history) @ self.directions.T
        rows = np.repeat(np.arange(history.shape[0]), np.diff(history.indptr))
        own_scores = history.data * np.square(self.directions.cpu().numpy()[history.indices]).sum(1)
        scores[rows, history.indices] -= torch.from_numpy(own_scores).to(scores)
        return scores

    def similarity_to(self, item: int) -> Tensor:
        """Return the cosine of every item's content with that of an item, [N + 1] (roles.KnowsSimilarItems)."""
        return self.directions @ self.directions[item]

    def _history(self, batch: SequenceBatch) -> sp.csr_matrix:
        """Return the recent items of each request and their weights, [B, N + 1]."""
        config = self.config
        return recent_history(batch, count=config.recent_items, decay=config.recency_decay, num_items=self.num_items)

    def _profiles(self, history: sp.csr_matrix) -> Tensor:
        return torch.from_numpy(history @ self.directions.cpu().numpy()).to(self.directions)

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        history = self._history(batch)
        # Enough extra items that k remain even if all items of the history fall out of the list.
        count = k + int(np.diff(history.indptr).max())
        nearest_items, scores = self.index.search(
            self.directions, self._profiles(history), count, allowed=batch.allowed, excluded=batch.excluded
        )
        # The part of its score that an item of the history has from itself: its weight times its squared length.
        history.data *= np.square(self.directions.cpu().numpy()[history.indices]).sum(1)
        rows = np.repeat(np.arange(len(nearest_items)), count)
        own_scores = np.asarray(history[rows, nearest_items.cpu().numpy().ravel()], np.float32).reshape(
            nearest_items.shape
        )
        scores = scores - torch.from_numpy(own_scores).to(scores)
        nearest_items, order = nearest_items.sort(dim=1)  # so that ties go to the smaller item number
        values, columns = stable_topk(scores.gather(1, order), k)
        return Recommendations(nearest_items.gather(1, columns), values)
