"""DIN: what a user has done is read with the candidate in view.

Zhou et al., Deep Interest Network, arXiv 1706.06978. Each item of the history is weighed by how it goes with the
candidate, and the weighted sum stands beside the other fields at the entrance of a network. Weights are not normalised,
so that the strength of an interest shows in the sum.

Notable
- Both sides of the attention are the fields of the item alone (its id, its categories, ...), side by side.
- Positives and negatives pass through the network in one batch. The authors' first results fed them as separate
  batches, whose statistics (Dice, BatchNorm) told the label, and were withdrawn.
- `l2` is the paper's mini-batch-aware regularisation as a term of the loss; adaptive optimizers rescale its gradient
  like any other.

Shapes: B requests, L history, P candidates, F fields, D width, X width of an item's fields, S tasks.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.interactions import Interactions
from nextitem.core.roles import Examples
from nextitem.data.examples.labelled_candidates import LabelledRequests
from nextitem.models.rankers.deep import DeepConfig, deep_part, field_gates
from nextitem.models.rankers.ranking_model import RankingModel
from nextitem.nn.fields import FieldCodes, FieldVectors
from nextitem.nn.mini_batch_aware import mini_batch_aware_l2
from nextitem.nn.mlp import Activation
from nextitem.nn.target_attention import TargetAttention

COUNTED_AT_ONCE = 1024  # requests, when counting what training looks up


class DINConfig(DeepConfig):
    """Settings of DIN."""

    activation: Activation = "dice"
    unit: tuple[int, int] = (80, 40)  # widths of the activation unit's hidden layers
    normalise: bool = False  # a softmax of weights / sqrt(X) instead of the paper's plain sum
    l2: float = Field(0.0, ge=0)  # lambda of the mini-batch-aware regularisation of field vectors


class DIN(RankingModel):
    """Ranks by fields and by the part of the history that goes with the candidate."""

    Config = DINConfig
    counts: Tensor

    def __init__(self, config: DINConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.l2 = config.l2
        self.vectors = FieldVectors(self.fields, config.width)
        self.gates = field_gates(config, len(self.fields))
        self.attention = TargetAttention(self.vectors.item_width, hidden=config.unit, normalise=config.normalise)
        width = len(self.fields) * config.width + self.vectors.item_width
        self.deep = deep_part(config, width, tasks=len(self.tasks))
        self.register_buffer("counts", torch.zeros(self.fields.size if config.l2 else 0))

    def logits(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        """What the network makes of the fields and of the history as the candidate sees it."""
        fields_PX = self.gates(self.vectors(codes)).flatten(1)
        out: Tensor = self.deep(torch.cat([fields_PX, self.interest(batch, codes)], 1))
        return out

    def interest(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        """The recent history summed up for each candidate, [P, X]."""
        assert batch.candidates is not None
        recent = batch.items.last(self.ranking.max_history_length)
        queries = self.vectors.of_items(batch.candidates.values)
        keys_BLX = self.vectors.of_items(recent.to_padded())
        out: Tensor = self.attention(queries, keys_BLX, recent.lengths, codes.rows)
        return out

    def examples(self, train: Dataset) -> Examples:
        """As every ranker's; counts what they look up."""
        found = super().examples(train)
        if not isinstance(found, LabelledRequests):
            self._count(found)
        return found

    def examples_of(self, requests: SequenceBatch, log: Interactions) -> Examples:
        """As every ranker's; counts what they look up."""
        found = super().examples_of(requests, log)
        self._count(found)
        return found

    def penalty(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        """lambda times the mini-batch-aware L2 of the field vectors."""
        if not self.l2:
            return super().penalty(batch, codes)
        rows, _ = self._looked_up(batch, codes)
        return self.l2 * mini_batch_aware_l2(self.vectors.table.weight, rows, self.counts)

    def _count(self, examples: Examples) -> None:
        """How many candidates of an epoch hold each code."""
        if not self.l2:
            return
        self.counts.zero_()
        for batch in examples.batches(COUNTED_AT_ONCE, epoch=0, seed=0):
            self.counts.index_add_(0, *self._looked_up(batch, self.fields(batch)))

    def _looked_up(self, batch: SequenceBatch, codes: FieldCodes) -> tuple[Tensor, Tensor]:
        """Codes whose vectors a batch reads, repeats among them, and how many candidates read each for."""
        assert batch.candidates is not None
        shown = batch.candidates.lengths.float()
        recent = batch.items.last(self.ranking.max_history_length)
        rows, counts = [codes.request.flatten()], [shown.repeat_interleave(codes.request.shape[1])]
        for bag in codes.request_bags:
            rows, counts = [*rows, bag.values], [*counts, shown[bag.row_ids()]]
        for start, field in self.fields.items():
            held = field.of_items(recent.values)
            owner = recent.row_ids() if isinstance(held, Tensor) else recent.row_ids()[held.row_ids()]
            rows.append(start + (held if isinstance(held, Tensor) else held.values))
            counts.append(shown[owner])
        by_candidate = torch.cat([codes.candidate.flatten(), *(bag.values for bag in codes.candidate_bags)])
        return torch.cat([*rows, by_candidate]), torch.cat([*counts, shown.new_ones(len(by_candidate))])
