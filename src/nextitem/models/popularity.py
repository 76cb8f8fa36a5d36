"""Popularity: the most frequent items; recent events count more.

The baseline of every comparison. An event counts 0.5 ** (age / half-life). Its age is measured from the end of the log
(data/last_time.py: a few events that are dated far ahead do not move it). Without times every event counts 1.

Notable
- The rate of an item is not smoothed: at these counts a prior would not change the order.

Shapes: B requests, N items, K returned.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.core.top_items import rank_unseen_last, top_shared_items
from nextitem.data.last_time import half_life_weights


class PopularityConfig(configs.Config):
    """Settings of Popularity."""

    half_life_days: float | None = Field(30.0, gt=0)
    """Age in days at which an event counts half; None: all events have equal weight."""


class Popularity(Recommender):
    """A recommender that ranks items by their decayed number of training events."""

    Config = PopularityConfig
    known_answers: ClassVar[tuple[str, ...]] = ()
    can_rank_unseen_items = False
    decayed_counts: Tensor

    def __init__(self, config: PopularityConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.half_life_days = config.half_life_days
        # In float64, which still separates items whose last event was decades before the end of the log.
        self.register_buffer("decayed_counts", torch.zeros(catalog.num_items + 1, dtype=torch.float64))

    def fit(self, train: Dataset) -> None:
        """Count the training events that may be targets."""
        log = train.interactions.targets_only()
        weights = None
        if self.half_life_days is not None and log.timestamps is not None:
            weights = half_life_weights(log.timestamps, self.half_life_days)
        counts = np.bincount(log.item_ids, weights=weights, minlength=self.num_items + 1)
        self.decayed_counts.copy_(torch.from_numpy(counts))

    def scores(self, batch: SequenceBatch) -> Tensor:
        """Score every item for each request, [B, N + 1] (roles.ItemScorer)."""
        return rank_unseen_last(self.decayed_counts.repeat(batch.num_requests, 1), self.unseen_items())

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        rows = torch.zeros(batch.num_requests, dtype=torch.int64, device=self.decayed_counts.device)
        shared = rank_unseen_last(self.decayed_counts[None].clone(), self.unseen_items())
        return top_shared_items(shared, rows, batch, k)
