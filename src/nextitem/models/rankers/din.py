"""DIN: attention of a candidate to the history of the user.

Zhou et al., Deep Interest Network, arXiv 1706.06978. Each item of the history gets a weight that depends on the
candidate. A network reads the weighted sum beside the other fields. Weights are not normalised, so the sum expresses
the strength of an interest.

Notable
- Both sides of the attention are the concatenated fields of an item alone (its id, its categories, ...).
- Positives and negatives pass through the network in one batch. The authors' first results used separate batches,
  whose statistics (Dice, BatchNorm) revealed the label. These results were withdrawn.
- `l2` is the paper's mini-batch-aware regularisation as a term of the loss, so adaptive optimizers rescale its gradient
  like any other. The vector of a history item is regularised by the batches in which the item is a candidate.

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
    """Widths of the hidden layers of the activation unit, which weighs history items."""
    normalise: bool = False
    """Whether to sum the history by a softmax of weights / sqrt(X) instead of the paper's unnormalised weights."""


class DIN(RankingModel):
    """Ranker that reads fields and a sum of the history weighted by attention to the candidate."""

    Config = DINConfig

    def __init__(self, config: DINConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.vectors = FieldVectors(self.fields, config.width, config.table)
        self.gates = field_gates(config, len(self.fields))
        width = history_width(self.vectors)
        self.attention = TargetAttention(width, hidden=config.unit, normalise=config.normalise)
        self.deep = deep_part(config, len(self.fields) * config.width + width, tasks=len(self.tasks))

    def logits(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        """Return the logits [P, S] of the network over the fields and the candidate's view of the history."""
        fields_PX = self.gates(self.vectors(codes)).flatten(1)
        out: Tensor = self.deep(torch.cat([fields_PX, self.interest(batch, codes)], 1))
        return out

    def interest(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        """Return the weighted sum of the recent history for each candidate, [P, X]."""
        assert batch.candidates is not None
        recent = batch.items.last(self.config.max_history_length)
        queries_PX = self.vectors.of_items(batch.candidates.values)
        keys_BLX = self.vectors.of_items(recent.to_padded())
        out: Tensor = self.attention(queries_PX, keys_BLX, recent.lengths, codes.rows)
        return out
