"""Exposure: every provider (brand, seller) of the candidates is shown by its merit, as far as a stated share of it.

Paper: Singh, Joachims: Fairness of Exposure in Rankings, KDD 2018 (disparate treatment: exposure proportional to
merit). Place s of a list (from 1) has the exposure 1 / log2(1 + s), a provider's merit is the sum of its candidates'
relevance, and the constraint is: the provider's part of the list's exposure >= share x its part of all merit. Of the
lists that keep it, one near the order of relevance is built place by place: a place goes to the provider that is owed
most, if it is owed all of that place; else to the most relevant item.

Notable
- The paper solves a linear programme for a distribution over lists and keeps the constraint on average. Here each list
  keeps it by itself, up to less than the first place: places cannot be divided, and where many providers are owed a
  little each, none may come to one. Amortising over requests (Biega et al., SIGIR 2018) would settle such debts later,
  but an answer would then depend on which requests came before it.
- Relevance runs from 0, the request's last candidate, to 1, its best; so a provider whose candidates stand last has
  little merit. Items without a provider are owed nothing. A provider whose candidates are used up is owed nothing more.

Shapes: B requests, K candidates, k items of the answer, N items.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from nextitem.cascade.reranker import TIE_DIGITS, Reranker, barred, first_best, relevance, sum_by_value, take
from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.recommendations import Recommendations
from nextitem.neighbours.item_similarity import one_value


class ExposureConfig(configs.Config):
    """Settings of Exposure."""

    column: str
    """Categorical feature of the items that names the provider."""
    share: float = Field(0.8, ge=0, le=1)
    """Of its merit that each provider's exposure must come to; 0: relevance alone."""


class Exposure(Reranker):
    """Keeps a floor under the exposure of each provider."""

    Config = ExposureConfig
    config: ExposureConfig
    provider: Tensor

    def __init__(self, config: ExposureConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.register_buffer("provider", one_value(catalog, config.column), persistent=False)  # [N + 1]

    def _rerank(self, candidates: Recommendations, batch: SequenceBatch, k: int) -> Recommendations:
        worth, open_ = relevance(candidates), barred(candidates)
        provider = self.provider[candidates.item_ids]
        merit = sum_by_value(provider, worth) / worth.sum(1, keepdim=True).clamp(min=1)
        merit = merit.masked_fill(provider == 0, 0.0)
        due = self.config.share * merit  # of each candidate's provider, per unit of exposure
        shown = torch.zeros_like(worth)  # exposure of each candidate's provider so far
        by_place = -torch.arange(worth.shape[1], dtype=torch.float64, device=worth.device)
        chosen = []
        places = discounts(min(k, worth.shape[1])).tolist()
        total = 0.0
        for place in places:
            total += place
            debt = (due * total - shown).round(decimals=TIE_DIGITS)
            # Debts are positive: whoever is owed a whole place stands before all who are not.
            keys = torch.where(debt >= round(place, TIE_DIGITS), debt, by_place - 1)
            picked = first_best(keys + open_)
            chosen.append(picked)
            open_.scatter_(1, picked, -torch.inf)
            shown += place * (provider == provider.gather(1, picked))
        return take(candidates, torch.cat(chosen, 1) if chosen else candidates.item_ids, k)


def discounts(count: int) -> Tensor:
    """Exposure of the first `count` places, [count] float64."""
    return 1 / torch.log2(torch.arange(2, count + 2, dtype=torch.float64))
