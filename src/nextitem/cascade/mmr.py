"""MMR, maximal marginal relevance: select items one by one, each relevant and unlike those selected before it.

Paper: Carbonell, Goldstein: The Use of MMR, Diversity-Based Reranking, SIGIR 1998. The next item is

    argmax  w rel(i) - (1 - w) max_{j selected} sim(i, j)

Notable
- Both scales run from 0 to 1. Relevance is 0 for the request's last candidate and 1 for its best; sim is
  (1 + cosine) / 2.
- The first item is the most relevant one.

Shapes: B requests, K candidates, k items of the answer.
"""

from __future__ import annotations

import torch
from pydantic import Field

from nextitem.cascade.reranker import Reranker, availability, best_candidate, relevance, select_candidates
from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.recommendations import Recommendations
from nextitem.neighbours.item_similarity import ItemSimilarity


class MMRConfig(configs.Config):
    """Settings of MMR."""

    relevance_weight: float = Field(0.7, ge=0, le=1)
    """Weight of relevance (w), against similarity to items that are already selected; 1: relevance alone."""


class MMR(Reranker):
    """Re-ranker that trades relevance against similarity to the most similar item that is already selected."""

    Config = MMRConfig
    config: MMRConfig

    def __init__(self, config: MMRConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.similarity = ItemSimilarity(catalog)

    def _rerank(self, candidates: Recommendations, batch: SequenceBatch, k: int) -> Recommendations:
        cosines = self.similarity.among(candidates.item_ids)
        weight = self.config.relevance_weight
        base_keys = weight * relevance(candidates) + availability(candidates)
        max_similarity = torch.zeros_like(base_keys)  # to the selected items
        selection = []
        for _ in range(min(k, base_keys.shape[1])):
            best = best_candidate(base_keys - (1 - weight) * max_similarity)
            selection.append(best)
            base_keys.scatter_(1, best, -torch.inf)
            max_similarity = torch.maximum(max_similarity, 0.5 + 0.5 * cosines(best[:, 0]))
        return select_candidates(candidates, torch.cat(selection, 1) if selection else candidates.item_ids, k)
