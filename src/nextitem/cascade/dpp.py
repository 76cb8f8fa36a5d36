"""DPP: the list whose items together have the largest determinant of relevance and likeness.

Paper: Chen, Zhang, Zhou: Fast Greedy MAP Inference for Determinantal Point Process to Improve Recommendation
Diversity, arXiv 1709.05135. A list is as likely as the determinant of its part of L = diag(q) S diag(q): the volume
that its items span, each as long as it is relevant. q = exp(alpha r), alpha = theta / (2 (1 - theta)), so theta is the
weight of relevance against log det S; S = (1 + cosine) / 2. Items are chosen greedily (ops.greedy_map).

Notable
- r runs from 0, the request's last candidate, to 1, its best. The paper leaves the scale of r open.
- The greedy search ends where what is left is a combination of what is chosen: d^2 < 1e-10, here relative to L_ii, so
  that a large q cannot lift the second of two equal items above that. Then the list is filled by relevance. With a
  window that lasts until the window has moved on.
- The window is worked out anew from the factor of its own items, in place of the paper's update of the factor; the
  same numbers, and no rounding errors that grow along a list.

Shapes: B requests, K candidates, k items of the answer.
"""

from __future__ import annotations

import torch
from pydantic import Field

from nextitem.cascade.reranker import Reranker, barred, relevance, take
from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.recommendations import Recommendations
from nextitem.neighbours.item_similarity import ItemSimilarity
from nextitem.ops.greedy_map import greedy_map


class DPPConfig(configs.Config):
    """Settings of DPP."""

    theta: float = Field(0.92, ge=0, lt=1)
    """Weight of relevance; 0: diversity alone."""
    window: int | None = Field(None, ge=2)
    """Neighbouring items that must differ from each other; None: the whole list."""


class DPP(Reranker):
    """Chooses by the volume that a list spans."""

    Config = DPPConfig
    config: DPPConfig

    def __init__(self, config: DPPConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.similarity = ItemSimilarity(catalog)

    def _rerank(self, candidates: Recommendations, batch: SequenceBatch, k: int) -> Recommendations:
        width = candidates.item_ids.shape[1]
        if not width:
            return take(candidates, candidates.item_ids, k)
        cosines = self.similarity.among(candidates.item_ids)
        alpha = self.config.theta / (2 * (1 - self.config.theta))
        chosen, _ = greedy_map(
            lambda places: 0.5 + 0.5 * cosines(places),
            torch.ones((len(candidates.item_ids), width), dtype=torch.float64, device=candidates.scores.device),
            min(k, width),
            log_quality=alpha * relevance(candidates),
            barred=barred(candidates),
            window=self.config.window,
        )
        return take(candidates, chosen, k)
