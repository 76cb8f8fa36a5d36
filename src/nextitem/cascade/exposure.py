"""Exposure: each provider (brand, seller) of the candidates gets exposure in proportion to its merit.

Paper: Singh, Joachims: Fairness of Exposure in Rankings, KDD 2018 (disparate treatment: exposure proportional to
merit). Slot s of a list (from 1) has the exposure 1 / log2(1 + s). The merit of a provider is the sum of its
candidates' relevance. The constraint is: the provider's part of the list's exposure >= share x its part of all merit.

Of the lists that satisfy it, one near the order of relevance is built slot by slot. A slot goes to the provider with
the largest missing exposure, if that is at least the exposure of the slot; else to the most relevant item.

Notable
- The paper solves a linear programme for a distribution over lists and satisfies the constraint on average. Here each
  list satisfies it by itself, up to less than the exposure of the first slot. Slots cannot be divided. If many
  providers lack a little exposure each, possibly none of them gets a slot. Amortising over requests (Biega et al.,
  SIGIR 2018) would make up for that later, but an answer would then depend on the requests before it.
- Relevance runs from 0, the request's last candidate, to 1, its best. So a provider whose candidates are the last ones
  has little merit. Items without a provider are owed no exposure. A provider whose candidates are used up is owed none
  either.

Shapes: B requests, K candidates, k items of the answer, N items.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from nextitem.cascade.reranker import (
    TIE_DIGITS,
    Reranker,
    availability,
    best_candidate,
    relevance,
    select_candidates,
    sum_by_value,
)
from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.recommendations import Recommendations
from nextitem.neighbours.item_similarity import one_value


class ExposureConfig(configs.Config):
    """Settings of exposure re-ranking."""

    column: str
    """Categorical feature of the items that names the provider."""
    share: float = Field(0.8, ge=0, le=1)
    """Share of its merit that each provider's exposure must reach; 0: relevance alone."""


class Exposure(Reranker):
    """Re-ranker that guarantees each provider a minimum exposure."""

    Config = ExposureConfig
    config: ExposureConfig
    provider: Tensor

    def __init__(self, config: ExposureConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.register_buffer("provider", one_value(catalog, config.column), persistent=False)  # [N + 1]

    def _rerank(self, candidates: Recommendations, batch: SequenceBatch, k: int) -> Recommendations:
        values, available = relevance(candidates), availability(candidates)
        provider = self.provider[candidates.item_ids]
        merit = sum_by_value(provider, values) / values.sum(1, keepdim=True).clamp(min=1)
        merit = merit.masked_fill(provider == 0, 0.0)
        floor = self.config.share * merit  # share of the list's exposure that each candidate's provider must get
        exposure = torch.zeros_like(values)  # of each candidate's provider so far
        rank_keys = -torch.arange(values.shape[1], dtype=torch.float64, device=values.device)
        selection = []
        total = 0.0
        for slot_exposure in slot_exposures(min(k, values.shape[1])).tolist():
            total += slot_exposure
            debt = (floor * total - exposure).round(decimals=TIE_DIGITS)
            # Debts are positive and other keys negative: providers that are owed a whole slot come first.
            keys = torch.where(debt >= round(slot_exposure, TIE_DIGITS), debt, rank_keys - 1)
            best = best_candidate(keys + available)
            selection.append(best)
            available.scatter_(1, best, -torch.inf)
            exposure += slot_exposure * (provider == provider.gather(1, best))
        return select_candidates(candidates, torch.cat(selection, 1) if selection else candidates.item_ids, k)


def slot_exposures(count: int) -> Tensor:
    """Return the exposure of each of the first `count` slots, [count] float64."""
    return 1 / torch.log2(torch.arange(2, count + 2, dtype=torch.float64))
