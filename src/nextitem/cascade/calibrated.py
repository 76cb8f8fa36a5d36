"""Calibrated re-ranking: lists in which the values of a column (genres, departments) have their shares in the history.

Paper: Steck: Calibrated Recommendations, RecSys 2018. Let p be the distribution of the column's values over the
history, and q that over the list. Items are added one by one. The next item is the one that maximises

    (1 - w) sum of relevance - w KL(p || (1 - s) q + s p)

(eq. 5 to 7). The smoothing s keeps the divergence finite.

Notable
- Relevance runs from 0, the request's last candidate, to 1, its best; the paper uses the model's scores unchanged.
- An item with several values gives each an equal share, as in the paper. "No value" is a value like any other.
- Every event of the history counts the same. Without a history there is nothing to match, so the order is unchanged.

Shapes: B requests, K candidates, k items of the answer, N items, S values of an item, V values of the column.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from nextitem.cascade.reranker import Reranker, availability, best_candidate, relevance, select_candidates
from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.recommendations import Recommendations
from nextitem.neighbours.item_similarity import column_values


class CalibratedConfig(configs.Config):
    """Settings of calibrated re-ranking."""

    column: str
    """Categorical or categorical-list feature of the items whose distribution is matched."""
    calibration_weight: float = Field(0.5, ge=0, le=1)
    """Weight of the match with the history (w), against relevance; 0: relevance alone."""
    smoothing: float = Field(0.01, gt=0, lt=1)
    """Share of the history's distribution that is mixed into the list's (s), to keep the divergence finite."""


class Calibrated(Reranker):
    """Re-ranker that matches the distribution of a column over the list to that over the history."""

    Config = CalibratedConfig
    config: CalibratedConfig
    values: Tensor
    shares: Tensor

    def __init__(self, config: CalibratedConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        values = column_values(catalog, config.column)
        self.num_values = int(values.max()) + 1
        is_value = values > 0
        is_value[:, 0] |= ~is_value.any(1)  # an item without a value has the value 0
        shares = is_value / is_value.sum(1, keepdim=True).double()
        self.register_buffer("values", values, persistent=False)  # [N + 1, S] codes
        self.register_buffer("shares", shares, persistent=False)  # [N + 1, S] share of the item that each value gets

    def _rerank(self, candidates: Recommendations, batch: SequenceBatch, k: int) -> Recommendations:
        weight, smoothing = self.config.calibration_weight, self.config.smoothing
        history_distribution = self._history_distribution(batch)
        values, shares = self.values[candidates.item_ids], self.shares[candidates.item_ids]
        flat_values = values.flatten(1)
        history_shares = history_distribution.gather(1, flat_values).view(values.shape)  # p of each candidate's values
        base_keys = (1 - weight) * relevance(candidates) + availability(candidates)
        list_counts = torch.zeros_like(history_distribution)  # items of each value on the list
        selection = []
        for size in range(1, 1 + min(k, flat_values.shape[1])):
            # (1 - s) q + s p at the candidate's values, before it is added.
            counts = list_counts.gather(1, flat_values).view(values.shape)
            mixture = (1 - smoothing) / size * counts + smoothing * history_shares
            # The decrease of the divergence if the candidate is added. Apart from a constant, only the terms of the
            # candidate's values change.
            ratio = 1 + (1 - smoothing) / size * shares / mixture.clamp(min=torch.finfo(mixture.dtype).tiny)
            best = best_candidate(base_keys + weight * torch.xlogy(history_shares, ratio).sum(2))
            selection.append(best)
            base_keys.scatter_(1, best, -torch.inf)
            index = best[..., None].expand(-1, -1, values.shape[2])
            list_counts.scatter_add_(1, values.gather(1, index)[:, 0], shares.gather(1, index)[:, 0])
        return select_candidates(candidates, torch.cat(selection, 1) if selection else candidates.item_ids, k)

    def _history_distribution(self, batch: SequenceBatch) -> Tensor:
        """Return the distribution of the values over each history, p [B, V] float64; all 0 without a history."""
        items = batch.items
        distribution = torch.zeros((items.num_rows, self.num_values), dtype=torch.float64, device=items.values.device)
        per_event = self.shares[items.values] / items.lengths[items.row_ids()][:, None]
        rows = items.row_ids()[:, None].expand(per_event.shape)
        distribution.index_put_((rows, self.values[items.values]), per_event, accumulate=True)
        return distribution
