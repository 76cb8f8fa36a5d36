"""Geo popularity: the most frequent items in the request's region, backed off to wider regions and to all events.

The few events of a small region are weak evidence. Its rates are shrunk towards those of the next wider region, as if
that had added `strength` events (empirical Bayes with a Dirichlet prior). A region without events, or a request of
unknown region, thus has the rates of the next wider one.

    r_all(i)    = n(i) / n
    r_c(i)      = (n_c(i) + strength * r(i)) / (n_c + strength)       r: rate in the next wider region

Notable
- A region is a value of a categorical feature of users: country, city, any other segment. If several columns are named,
  each is counted alone, not jointly with the wider ones: a city determines its country.
- Events count 0.5 ** (age / half-life), as in popularity.
- An empty history is answered in the same way if its region is known.

Shapes: B requests, N items, K returned, V distinct combinations of regions in a batch.
"""

from __future__ import annotations

from typing import ClassVar, cast

import numpy as np
import scipy.sparse as sp
import torch
from pydantic import Field
from torch import Tensor, nn

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.core.top_items import rank_unseen_last, top_shared_items
from nextitem.data.last_time import half_life_weights
from nextitem.data.requests import user_context
from nextitem.neighbours.sparse_rows import SparseRows

BLOCK_RATES = 2**22  # rates in memory at a time: 16 MiB, and a few copies of that size


class GeoPopularityConfig(configs.Config):
    """Settings of GeoPopularity."""

    columns: tuple[str, ...] | None = None
    """Columns user.<feature> that define regions, finest first; None: all categorical features of users."""
    strength: float = Field(500.0, ge=0)
    """Weight of the next wider region, in events."""
    half_life_days: float | None = Field(30.0, gt=0)
    """Age in days at which an event counts half; None: all events have equal weight."""


class GeoPopularity(Recommender):
    """A recommender that ranks items by their smoothed rate in the request's region."""

    Config = GeoPopularityConfig
    config: GeoPopularityConfig
    known_answers: ClassVar[tuple[str, ...]] = ()
    can_rank_unseen_items = False
    overall: Tensor

    def __init__(self, config: GeoPopularityConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        user_columns = [
            name
            for name, column in catalog.requests.items()
            if column.kind == "categorical" and name.startswith("user.")
        ]
        self.columns = tuple(user_columns) if config.columns is None else config.columns
        for name in self.columns:
            if name not in user_columns:
                raise ValueError(
                    f"column {name!r} is no categorical feature of users; this data has: {', '.join(user_columns)}"
                )
        self.register_buffer("overall", torch.zeros(catalog.num_items + 1))  # r_all
        self.regions = nn.ModuleList(SparseRows() for _ in self.columns)  # [codes, N + 1]: n_c(i)

    def fit(self, train: Dataset) -> None:
        """Count the training events of each region."""
        log = train.interactions.targets_only()
        weights = np.ones(len(log))
        if self.config.half_life_days is not None and log.timestamps is not None:
            weights = half_life_weights(log.timestamps, self.config.half_life_days)
        counts = np.bincount(log.item_ids, weights=weights, minlength=self.num_items + 1)
        self.overall = torch.from_numpy(counts / max(counts.sum(), 1e-30)).float()
        user_features = user_context(train)
        for name, region in zip(self.columns, self.regions, strict=True):
            codes = user_features[name]
            assert isinstance(codes, Tensor)
            shape = (self.catalog.requests[name].num_codes, self.num_items + 1)
            entries = (codes.numpy()[log.user_ids], log.item_ids)
            cast(SparseRows, region).store(sp.csr_matrix((weights.astype(np.float32), entries), shape=shape))

    def _codes(self, batch: SequenceBatch) -> Tensor:
        """Return the region codes of each request, finest first, [B, columns]; 0 if unknown."""
        unknown = torch.zeros(batch.num_requests, dtype=torch.int64)
        codes = [batch.context.get(name, unknown) for name in self.columns]
        return torch.stack(codes, 1) if codes else unknown[:, None]

    def rates(self, codes: Tensor) -> Tensor:
        """Return the smoothed rates [V, N + 1] of regions with `codes [V, columns]`; unseen items rank last."""
        rates = self.overall.repeat(len(codes), 1)
        for column in reversed(range(len(self.columns))):
            column_codes = codes[:, column].numpy()
            region = cast(SparseRows, self.regions[column])
            counts = torch.from_numpy(region.matrix()[column_codes].toarray())
            smoothed = (counts + self.config.strength * rates) / (
                counts.sum(1, keepdim=True) + self.config.strength
            ).clamp(min=1e-30)
            is_known = torch.from_numpy(column_codes > 0) & (counts.sum(1) + self.config.strength > 0)
            rates = torch.where(is_known[:, None], smoothed, rates)
        return rank_unseen_last(rates, self.unseen_items())

    def scores(self, batch: SequenceBatch) -> Tensor:
        """Score every item for each request, [B, N + 1] (roles.ItemScorer)."""
        codes, region = torch.unique(self._codes(batch), dim=0, return_inverse=True)
        return self.rates(codes)[region]

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        codes, region = torch.unique(self._codes(batch), dim=0, return_inverse=True)
        order = region.argsort(stable=True)
        answers, block_size = [], max(1, BLOCK_RATES // (self.num_items + 1))
        for start in range(0, len(codes), block_size):  # a block of regions, with the requests that come from there
            block = codes[start : start + block_size]
            rows = order[(region[order] >= start) & (region[order] < start + len(block))]
            answers.append(top_shared_items(self.rates(block), region[rows] - start, batch.select(rows), k))
        original_order = order.argsort()
        return Recommendations(
            torch.cat([answer.item_ids for answer in answers])[original_order],
            torch.cat([answer.scores for answer in answers])[original_order],
        )

    def _popular(self, batch: SequenceBatch, k: int) -> Recommendations:
        everywhere = super()._popular(batch, k)
        is_known = (self._codes(batch) > 0).any(1, keepdim=True)
        if not bool(is_known.any()):
            return everywhere
        regional = self._recommend(batch, k)
        return Recommendations(
            torch.where(is_known, regional.item_ids, everywhere.item_ids),
            torch.where(is_known, regional.scores, everywhere.scores),
        )
