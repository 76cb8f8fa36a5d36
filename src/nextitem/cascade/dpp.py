"""DPP: the list whose items maximise a determinant, which grows with their relevance and their diversity.

Paper: Chen, Zhang, Zhou: Fast Greedy MAP Inference for Determinantal Point Process to Improve Recommendation
Diversity, arXiv 1709.05135. The probability of a list is proportional to the determinant of its part of
L = diag(q) S diag(q). That is the squared volume that the vectors of its items span, each as long as the item is
relevant. q = exp(alpha r) and alpha = theta / (2 (1 - theta)), so theta is the weight of relevance against log det S.
S = (1 + cosine) / 2. Items are selected greedily (ops.greedy_map).

Notable
- r runs from 0, the request's last candidate, to 1, its best. The paper leaves the scale of r open.
- The greedy search ends if every remaining item is a linear combination of the selected ones: d^2 < 1e-10. Here that
  bound is relative to L_ii, so that a large q cannot lift the second of two equal items above it. Then the list is
  filled by relevance; with a window, only until the window has moved on.
- The window is computed again from the factor of its items, in place of the paper's update of the factor. The result
  is the same, without rounding errors that grow along a list.

Shapes: B requests, K candidates, k items of the answer.
"""

from __future__ import annotations

import torch
from pydantic import Field

from nextitem.cascade.reranker import Reranker, availability, relevance, select_candidates
from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.recommendations import Recommendations
from nextitem.neighbours.item_similarity import ItemSimilarity
from nextitem.ops.greedy_map import greedy_map


class DPPConfig(configs.Config):
    """Settings of DPP."""

    theta: float = Field(0.92, ge=0, lt=1)
    """Weight of relevance, against diversity; 0: diversity alone."""
    window: int | None = Field(None, ge=2)
    """Number of neighbouring items that must differ from each other; none: the whole list."""


class DPP(Reranker):
    """Re-ranker that maximises the volume that the vectors of a list span."""

    Config = DPPConfig
    config: DPPConfig

    def __init__(self, config: DPPConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.similarity = ItemSimilarity(catalog)

    def _rerank(self, candidates: Recommendations, batch: SequenceBatch, k: int) -> Recommendations:
        width = candidates.item_ids.shape[1]
        if not width:
            return select_candidates(candidates, candidates.item_ids, k)
        cosines = self.similarity.among(candidates.item_ids)
        alpha = self.config.theta / (2 * (1 - self.config.theta))
        selection, _ = greedy_map(
            lambda indices: 0.5 + 0.5 * cosines(indices),
            torch.ones((len(candidates.item_ids), width), dtype=torch.float64, device=candidates.scores.device),
            min(k, width),
            log_quality=alpha * relevance(candidates),
            barred=availability(candidates),
            window=self.config.window,
        )
        return select_candidates(candidates, selection, k)
