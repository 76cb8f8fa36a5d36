"""Calibrated re-ranking: a list whose values of a column (genres, departments) are shared out as the history's are.

Paper: Steck: Calibrated Recommendations, RecSys 2018. With p the distribution of the column's values over the history
and q that over the list, items are added one by one, each the one for which

    (1 - w) sum of relevance - w KL(p || (1 - s) q + s p)

is largest (eq. 5 to 7); s keeps the divergence finite.

Notable
- Relevance runs from 0, the request's last candidate, to 1, its best; the paper takes the model's scores as they are.
- An item with several values gives each an equal share, as in the paper. "No value" is a value like others.
- Every event of the history counts the same. Without a history there is nothing to match: the order stays.

Shapes: B requests, K candidates, k items of the answer, N items, S values of an item, V values of the column.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from nextitem.cascade.reranker import Reranker, barred, first_best, relevance, take
from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.recommendations import Recommendations
from nextitem.neighbours.item_similarity import column_values


class CalibratedConfig(configs.Config):
    """Settings of Calibrated."""

    column: str
    """Categorical or categorical-list feature of the items."""
    calibration_weight: float = Field(0.5, ge=0, le=1)
    """W; 0: relevance alone."""
    smoothing: float = Field(0.01, gt=0, lt=1)
    """S, share of the history's distribution that is mixed into the list's."""


class Calibrated(Reranker):
    """Matches the list's distribution over a column to the history's."""

    Config = CalibratedConfig
    config: CalibratedConfig
    values: Tensor
    shares: Tensor

    def __init__(self, config: CalibratedConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        values = column_values(catalog, config.column)
        self.num_values = int(values.max()) + 1
        known = values > 0
        known[:, 0] |= ~known.any(1)  # no value: the value 0
        self.register_buffer("values", values, persistent=False)  # [N + 1, S]
        self.register_buffer("shares", known / known.sum(1, keepdim=True).double(), persistent=False)  # of each value

    def _rerank(self, candidates: Recommendations, batch: SequenceBatch, k: int) -> Recommendations:
        weight, mixed = self.config.calibration_weight, self.config.smoothing
        target = self._history_distribution(batch)
        values, shares = self.values[candidates.item_ids], self.shares[candidates.item_ids]
        flat = values.flatten(1)
        wanted = target.gather(1, flat).view(values.shape)  # p of each candidate's values
        worth = (1 - weight) * relevance(candidates) + barred(candidates)
        held = torch.zeros_like(target)  # of each value, in items
        chosen = []
        for size in range(1, 1 + min(k, flat.shape[1])):
            now = (1 - mixed) / size * held.gather(1, flat).view(values.shape) + mixed * wanted
            # What adding the candidate takes off the divergence; only its own values' terms change beside a constant.
            ratio = 1 + (1 - mixed) / size * shares / now.clamp(min=torch.finfo(now.dtype).tiny)
            place = first_best(worth + weight * torch.xlogy(wanted, ratio).sum(2))
            chosen.append(place)
            worth.scatter_(1, place, -torch.inf)
            at = place[..., None].expand(-1, -1, values.shape[2])
            held.scatter_add_(1, values.gather(1, at)[:, 0], shares.gather(1, at)[:, 0])
        return take(candidates, torch.cat(chosen, 1) if chosen else candidates.item_ids, k)

    def _history_distribution(self, batch: SequenceBatch) -> Tensor:
        """p [B, V] float64; all 0 without a history."""
        items = batch.items
        target = torch.zeros((items.num_rows, self.num_values), dtype=torch.float64, device=items.values.device)
        per_event = self.shares[items.values] / items.lengths[items.row_ids()][:, None]
        rows = items.row_ids()[:, None].expand(per_event.shape)
        target.index_put_((rows, self.values[items.values]), per_event, accumulate=True)
        return target
