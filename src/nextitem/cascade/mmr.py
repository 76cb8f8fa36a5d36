"""MMR, maximal marginal relevance: items one by one, each relevant and unlike those chosen before it.

Paper: Carbonell, Goldstein: The Use of MMR, Diversity-Based Reranking, SIGIR 1998. The next item is

    argmax  w rel(i) - (1 - w) max_{j chosen} sim(i, j)

Notable
- Both scales lie in 0..1: relevance runs from the request's last candidate to its best, sim is (1 + cosine) / 2.
- The first item is the most relevant one.

Shapes: B requests, K candidates, k items of the answer.
"""

from __future__ import annotations

import torch
from pydantic import Field

from nextitem.cascade.reranker import Reranker, barred, first_best, relevance, take
from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.recommendations import Recommendations
from nextitem.neighbours.item_similarity import ItemSimilarity


class MMRConfig(configs.Config):
    """Settings of MMR."""

    relevance_weight: float = Field(0.7, ge=0, le=1)
    """W; 1: relevance alone."""


class MMR(Reranker):
    """Trades relevance against the nearest item that is chosen already."""

    Config = MMRConfig
    config: MMRConfig

    def __init__(self, config: MMRConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.similarity = ItemSimilarity(catalog)

    def _rerank(self, candidates: Recommendations, batch: SequenceBatch, k: int) -> Recommendations:
        cosines = self.similarity.among(candidates.item_ids)
        weight = self.config.relevance_weight
        worth = weight * relevance(candidates) + barred(candidates)
        nearest = torch.zeros_like(worth)
        chosen = []
        for _ in range(min(k, worth.shape[1])):
            place = first_best(worth - (1 - weight) * nearest)
            chosen.append(place)
            worth.scatter_(1, place, -torch.inf)
            nearest = torch.maximum(nearest, 0.5 + 0.5 * cosines(place[:, 0]))
        return take(candidates, torch.cat(chosen, 1) if chosen else candidates.item_ids, k)
