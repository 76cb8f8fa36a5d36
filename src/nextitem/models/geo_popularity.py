"""Geo popularity: the most frequent items where the request comes from, backed off to wider regions and to all.

Few events of a small region say little: its rates are drawn towards those of the next wider one, as if that had added
`strength` events (empirical Bayes with a Dirichlet prior). A region without events, or a request of whom nothing is
known, thus has the rates of the next wider one.

    r_all(i)    = n(i) / n
    r_c(i)      = (n_c(i) + strength * r(i)) / (n_c + strength)       r: of the next wider region

Notable
- A region is a value of a categorical feature of users: country, city, any other segment. Where several are named each
  is counted alone, not jointly with the wider ones: a city tells its country.
- Events count 0.5 ** (age / half-life), as in popularity.
- An empty history is answered likewise, where its region is known.

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

BLOCK_RATES = 2**22  # rates that are held at a time: 16 MiB, some times over


class GeoPopularityConfig(configs.Config):
    """Settings of GeoPopularity."""

    columns: tuple[str, ...] | None = None
    """user.<feature>, finest first; None: all categorical ones of users."""
    strength: float = Field(500.0, ge=0)
    """Events that the next wider region adds."""
    half_life_days: float | None = Field(30.0, gt=0)
    """Age at which an event counts half; None: all count alike."""


class GeoPopularity(Recommender):
    """Ranks items by their smoothed rate in the request's region."""

    Config = GeoPopularityConfig
    config: GeoPopularityConfig
    known_answers: ClassVar[tuple[str, ...]] = ()
    can_rank_unseen_items = False
    overall: Tensor

    def __init__(self, config: GeoPopularityConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        there = [
            name
            for name, column in catalog.requests.items()
            if column.kind == "categorical" and name.startswith("user.")
        ]
        self.columns = tuple(there) if config.columns is None else config.columns
        for name in self.columns:
            if name not in there:
                raise ValueError(f"column {name!r} is no categorical feature of users; there are: {', '.join(there)}")
        self.register_buffer("overall", torch.zeros(catalog.num_items + 1))  # r_all
        self.regions = nn.ModuleList(SparseRows() for _ in self.columns)  # [codes, N + 1]: n_c(i)

    def fit(self, train: Dataset) -> None:
        """Counts the training events of each region."""
        log = train.interactions.targets_only()
        weights = np.ones(len(log))
        if self.config.half_life_days is not None and log.timestamps is not None:
            weights = half_life_weights(log.timestamps, self.config.half_life_days)
        counts = np.bincount(log.item_ids, weights=weights, minlength=self.num_items + 1)
        self.overall = torch.from_numpy(counts / max(counts.sum(), 1e-30)).float()
        known = user_context(train)
        for name, region in zip(self.columns, self.regions, strict=True):
            codes = known[name]
            assert isinstance(codes, Tensor)
            shape = (self.catalog.requests[name].num_codes, self.num_items + 1)
            places = (codes.numpy()[log.user_ids], log.item_ids)
            cast(SparseRows, region).store(sp.csr_matrix((weights.astype(np.float32), places), shape=shape))

    def _codes(self, batch: SequenceBatch) -> Tensor:
        """The regions of each request, finest first, [B, columns]; 0 where unknown."""
        unknown = torch.zeros(batch.num_requests, dtype=torch.int64)
        codes = [batch.context.get(name, unknown) for name in self.columns]
        return torch.stack(codes, 1) if codes else unknown[:, None]

    def rates(self, codes: Tensor) -> Tensor:
        """Smoothed rates [V, N + 1] where regions have the given codes [V, columns]; unseen items below all others."""
        rates = self.overall.repeat(len(codes), 1)
        for column in reversed(range(len(self.columns))):
            own = codes[:, column].numpy()
            region = cast(SparseRows, self.regions[column])
            counts = torch.from_numpy(region.matrix()[own].toarray())
            smoothed = (counts + self.config.strength * rates) / (
                counts.sum(1, keepdim=True) + self.config.strength
            ).clamp(min=1e-30)
            known = torch.from_numpy(own > 0) & (counts.sum(1) + self.config.strength > 0)
            rates = torch.where(known[:, None], smoothed, rates)
        return rank_unseen_last(rates, self.unseen_items())

    def scores(self, batch: SequenceBatch) -> Tensor:
        """Score every item for each request, [B, N + 1] (roles.ItemScorer)."""
        codes, region = torch.unique(self._codes(batch), dim=0, return_inverse=True)
        return self.rates(codes)[region]

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        codes, region = torch.unique(self._codes(batch), dim=0, return_inverse=True)
        order = region.argsort(stable=True)
        answers, most = [], max(1, BLOCK_RATES // (self.num_items + 1))
        for start in range(0, len(codes), most):  # some regions at a time, with the requests that come from there
            block = codes[start : start + most]
            rows = order[(region[order] >= start) & (region[order] < start + len(block))]
            answers.append(top_shared_items(self.rates(block), region[rows] - start, batch.select(rows), k))
        back = order.argsort()
        return Recommendations(
            torch.cat([answer.item_ids for answer in answers])[back],
            torch.cat([answer.scores for answer in answers])[back],
        )

    def _popular(self, batch: SequenceBatch, k: int) -> Recommendations:
        everywhere = super()._popular(batch, k)
        known = (self._codes(batch) > 0).any(1, keepdim=True)
        if not bool(known.any()):
            return everywhere
        there = self._recommend(batch, k)
        return Recommendations(
            torch.where(known, there.item_ids, everywhere.item_ids), torch.where(known, there.scores, everywhere.scores)
        )
