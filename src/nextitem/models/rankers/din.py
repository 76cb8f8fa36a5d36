"""DIN: what a user has done is read with the candidate in view.

Zhou et al., Deep Interest Network, arXiv 1706.06978. Each item of the history is weighed by how it goes with the
candidate, and the weighted sum stands beside the other fields at the entrance of a network. Weights are not normalised,
so that the strength of an interest shows in the sum.

Notable
- Both sides of the attention are the fields of the item alone (its id, its categories, ...), side by side.
- Positives and negatives pass through the network in one batch. The authors' first results fed them as separate
  batches, whose statistics (Dice, BatchNorm) told the label, and were withdrawn.
- `l2` is the paper's mini-batch-aware regularisation as a term of the loss, so adaptive optimizers rescale its gradient
  like any other. A history item is pulled by the batches in which it is a candidate.

Shapes: B requests, L history, P candidates, F fields, D width, X width of an item's fields, S tasks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.models.rankers.deep import DeepConfig, deep_part, field_gates, history_width
from nextitem.models.rankers.ranking_model import RankingModel
from nextitem.nn.attention.target_attention import TargetAttention
from nextitem.nn.fields.fields import FieldCodes, FieldVectors
from nextitem.nn.ranking.mlp import Activation


class DINConfig(DeepConfig):
    """Settings of DIN."""

    activation: Activation = "dice"
    unit: tuple[int, int] = (80, 40)
    """Widths of the activation unit's hidden layers."""
    normalise: bool = False
    """A softmax of weights / sqrt(X) instead of the paper's plain sum."""


class DIN(RankingModel):
    """Ranks by fields and by the part of the history that goes with the candidate."""

    Config = DINConfig

    def __init__(self, config: DINConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.vectors = FieldVectors(self.fields, config.width)
        self.gates = field_gates(config, len(self.fields))
        width = history_width(self.vectors)
        self.attention = TargetAttention(width, hidden=config.unit, normalise=config.normalise)
        self.deep = deep_part(config, len(self.fields) * config.width + width, tasks=len(self.tasks))

    def logits(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        """What the network makes of the fields and of the history as the candidate sees it."""
        fields_PX = self.gates(self.vectors(codes)).flatten(1)
        out: Tensor = self.deep(torch.cat([fields_PX, self.interest(batch, codes)], 1))
        return out

    def interest(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        """The recent history summed up for each candidate, [P, X]."""
        assert batch.candidates is not None
        recent = batch.items.last(self.config.max_history_length)
        queries = self.vectors.of_items(batch.candidates.values)
        keys_BLX = self.vectors.of_items(recent.to_padded())
        out: Tensor = self.attention(queries, keys_BLX, recent.lengths, codes.rows)
        return out
