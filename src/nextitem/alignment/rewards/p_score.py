"""P-score: one number for how good an item is for a user, learned from all behaviours.

OneRec technical report (arXiv 2506.13695, section 4.1): a tower for each behaviour (click, purchase, ...) predicts it;
the towers' states, the user and the item are the input of a network with one output p. Loss: the towers'
cross-entropies, plus that of p with every behaviour, weighted.

Notable
- The paper's network is SIM with a search in a lifelong history. Here the candidate attends to the recent history, as
  in DIN (models/rankers/din.py).
- p has no label of its own: it is trained to be the mean of the behaviours by their weights, as far as the input tells.

Shapes: P candidates, S behaviours, X width of the fields and the interest.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.roles import LossTerms
from nextitem.losses.mean_by_request import mean_by_request
from nextitem.models.rankers.deep import DeepConfig, history_width
from nextitem.models.rankers.ranking_model import RankingModel
from nextitem.nn.attention.target_attention import TargetAttention
from nextitem.nn.fields.fields import FieldCodes, FieldVectors
from nextitem.nn.ranking.mlp import mlp

P_SCORE = "p_score"  # name of the task that joins the behaviours


class PScoreConfig(DeepConfig):
    """Settings of the P-score; `hidden` are the widths of the layers of a tower, and of the network above them."""

    behaviour_weights: dict[str, PositiveFloat] = {}
    """Weight of each behaviour in the loss of p; empty: 1 for each of `tasks`."""
    unit: tuple[int, int] = (32, 16)
    """Widths of the hidden layers of the activation unit, which weighs history items."""
    tower_width: int = Field(16, ge=1)
    """Width of the state of a tower that the network above reads."""


class PScore(RankingModel):
    """Ranker with a tower for each behaviour, and a network above them whose output joins them."""

    Config = PScoreConfig
    config: PScoreConfig

    def __init__(self, config: PScoreConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.vectors = FieldVectors(self.fields, config.width, config.table)
        width = history_width(self.vectors)
        self.attention = TargetAttention(width, hidden=config.unit)
        inputs, count = len(self.fields) * config.width + width, len(config.task_names)
        options: dict[str, Any] = {"activation": config.activation, "dropout": config.dropout}
        self.towers = nn.ModuleList(mlp(inputs, (*config.hidden, config.tower_width), **options) for _ in range(count))
        self.outputs = nn.ModuleList(nn.Linear(config.tower_width, 1) for _ in range(count))
        self.joined = mlp(inputs + count * config.tower_width, config.hidden, **options, out=1)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the behaviours, and the task that joins them."""
        return (*self.config.task_names, P_SCORE)

    def logits(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        """Return the logits [P, S + 1] of the behaviours, and of p."""
        assert batch.candidates is not None
        recent = batch.items.last(self.config.max_history_length)
        queries = self.vectors.of_items(batch.candidates.values)
        keys = self.vectors.of_items(recent.to_padded())
        interest = self.attention(queries, keys, recent.lengths, codes.rows)
        inputs_PX = torch.cat([self.vectors(codes).flatten(1), interest], 1)
        states = [tower(inputs_PX) for tower in self.towers]
        parts = [output(state) for output, state in zip(self.outputs, states, strict=True)]
        return torch.cat([*parts, self.joined(torch.cat([inputs_PX, *states], 1))], 1)

    def cross_entropy(self, batch: SequenceBatch, logits: Tensor) -> LossTerms:
        """Return the cross-entropies of the towers, plus that of p with all behaviours by their weights."""
        assert batch.candidates is not None
        towers = super().cross_entropy(batch, logits)
        rows, losses, total = batch.candidates.row_ids(), [], 0.0
        for label in self._labels(batch):
            labels = batch.candidate_labels[label].values
            weight = self.config.behaviour_weights.get(label, 1.0)
            values = F.binary_cross_entropy_with_logits(logits[:, -1], (labels > 0).float(), reduction="none")
            is_known = ~labels.isnan()
            losses.append(weight * mean_by_request(values, rows, num_requests=batch.num_requests, is_known=is_known))
            total += weight
        joined = torch.stack(losses).sum() / total
        return LossTerms(towers.total + joined, {**towers.named, P_SCORE: joined.detach()})
