"""Content neighbours: items whose content is like that of the history (Pazzani and Billsus, 1997, and since).

A profile is the decayed sum of the history's content vectors, each of length 1; items are ranked by their cosine with
it. Nothing is learnt from events, so an item is found from the day it is added.

    p = sum over the last events j of decay ** age(j) * c_j / |c_j|,    score(i) = p c_i / |c_i|

Notable
- An item of the history gets no score from itself: where repeats are allowed, each would else head its own list.
- Items without content have the score 0.

Shapes: B requests, N items, D content width, K returned.
"""

from __future__ import annotations

from typing import ClassVar

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
from nextitem.neighbours.ann_index import AnnIndex, AnnIndexConfig
from nextitem.neighbours.sparse_rows import padded_rows
from nextitem.neighbours.votes import recent_history
from nextitem.ops.topk import stable_topk


class ContentNeighboursConfig(configs.Config):
    """Settings of ContentNeighbours."""

    recent_items: int | None = Field(10, ge=1)  # items of the history that make the profile; None: all
    recency_decay: float = Field(0.7, gt=0, le=1)  # factor on an item for each event that followed it
    index: AnnIndexConfig = AnnIndexConfig()  # how items are found


class ContentNeighbours(Recommender):
    """Ranks items by how like the history their content is."""

    Config = ContentNeighboursConfig
    known_answers: ClassVar[tuple[str, ...]] = ("planted-clusters",)
    can_rank_unseen_items = True
    needs: ClassVar[frozenset[Requirement]] = frozenset({"content"})
    directions: Tensor

    def __init__(self, config: ContentNeighboursConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.settings = config
        assert catalog.content is not None, "the pipeline adds content where `needs` asks for it"
        self.register_buffer("directions", torch.zeros(catalog.content.shape))
        self.index = AnnIndex(config.index)

    def fit(self, train: Dataset) -> None:
        """Brings content vectors to length 1."""
        assert self.catalog.content is not None
        self.directions = torch.nn.functional.normalize(self.catalog.content, dim=1)
        self.index.build(self.directions)

    def scores(self, batch: SequenceBatch) -> Tensor:
        """Score every item for each request, [B, N + 1] (roles.ItemScorer)."""
        items, weights = self._recent(batch)
        profiles = torch.bmm(weights[:, None], self.directions[items])[:, 0]
        own = weights * self.directions[items].square().sum(2)
        return (profiles @ self.directions.T).scatter_add_(1, items, -own)

    def _recent(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Distinct items of the recent history and their weights, both [B, L]; padding is 0."""
        chosen = self.settings
        history = recent_history(batch, count=chosen.recent_items, decay=chosen.recency_decay, num_items=self.num_items)
        weights, items = padded_rows(history, torch.arange(batch.num_requests).numpy())
        return items, weights.masked_fill(weights == -torch.inf, 0)

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        items, weights = self._recent(batch)
        profiles = torch.bmm(weights[:, None], self.directions[items])[:, 0]
        # So many more that k are left however far the history's own items fall.
        count = k + items.shape[1]
        found, scores = self.index.search(
            self.directions, profiles, count, allowed=batch.allowed, excluded=batch.excluded
        )
        own = (found[:, :, None] == items[:, None, :]) & (found > 0)[:, :, None]
        lengths = self.directions[items].square().sum(2)
        scores = scores - (own * (weights * lengths)[:, None, :]).sum(2)
        found, order = found.sort(dim=1)  # so that ties go to the smaller number
        values, places = stable_topk(scores.gather(1, order), k)
        return Recommendations(found.gather(1, places), values)
