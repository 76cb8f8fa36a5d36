"""Several behaviour sequences (clicks, purchases, ...) that attend to one another and to the candidate.

The history is split by action. By cross attention each event reads related events of the other sequences (a click reads
the purchases that followed such clicks). Target attention then sums each sequence for the candidate, as in DIN
(arXiv 1706.06978). Other models with sequences by behaviour that attend to one another: e.g. Gu et al., DMT, CIKM 2020;
Yuan et al., MB-STR, SIGIR 2022.

Notable
- Cross attention acts between sequences only, in one layer. It does not depend on the candidate, so it is computed once
  for each request.

Shapes: B requests, L history, P candidates, F fields, D width, X width of an item's fields, S tasks.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.jagged import Jagged
from nextitem.models.rankers.deep import DeepConfig, deep_part, field_gates, history_width
from nextitem.models.rankers.ranking_model import RankingModel
from nextitem.nn.attention.cross_attention import CrossAttention
from nextitem.nn.attention.target_attention import TargetAttention
from nextitem.nn.fields.fields import FieldCodes, FieldVectors
from nextitem.nn.ranking.mlp import Activation


class MultiBehaviourConfig(DeepConfig):
    """Settings of the ranker with several behaviour sequences."""

    activation: Activation = "dice"
    behaviours: int = Field(2, ge=1)
    """Number of sequences: one for each of the first actions by name; the last sequence contains all other actions."""
    heads: int = Field(2, ge=1)
    """Number of heads of the cross attention between sequences."""
    unit: tuple[int, int] = (80, 40)
    """Widths of the hidden layers of the activation units, which weigh history items."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that are unused with the current values of the other fields: name -> reason."""
        cross_settings = configs.idle_unless(
            self.behaviours > 1, "behaviours is 1: there is no other sequence", "heads"
        )
        return {**super().idle_fields(), **cross_settings}


class MultiBehaviour(RankingModel):
    """Ranker that reads fields and one history for each behaviour, each weighted by attention to the candidate."""

    Config = MultiBehaviourConfig

    def __init__(self, config: MultiBehaviourConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.behaviours = config.behaviours
        self.vectors = FieldVectors(self.fields, config.width, config.table)
        self.gates = field_gates(config, len(self.fields))
        width, count = history_width(self.vectors, heads=config.heads), config.behaviours
        self.cross = nn.ModuleDict(
            {
                f"{a}_{b}": CrossAttention(width, heads=config.heads)
                for a in range(count)
                for b in range(count)
                if a != b
            }
        )
        self.attention = nn.ModuleList(TargetAttention(width, hidden=config.unit) for _ in range(count))
        self.deep = deep_part(config, len(self.fields) * config.width + count * width, tasks=len(self.tasks))

    def logits(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        """Return the logits [P, S] of the network over the fields and the candidate's view of each sequence."""
        assert batch.candidates is not None
        sequences = self.sequences(batch)
        padded = [self.vectors.of_items(sequence.to_padded()) for sequence in sequences]
        queries = self.vectors.of_items(batch.candidates.values)
        parts = [self.gates(self.vectors(codes)).flatten(1)]
        for a, attention in enumerate(self.attention):
            mixed = padded[a]
            for b, other in enumerate(sequences):
                if a != b:
                    mixed = self.cross[f"{a}_{b}"](mixed, padded[b], other.lengths)
            parts.append(attention(queries, mixed, sequences[a].lengths, codes.rows))
        out: Tensor = self.deep(torch.cat(parts, 1))
        return out

    def sequences(self, batch: SequenceBatch) -> list[Jagged]:
        """Split the recent items of the histories by action, into one Jagged for each behaviour.

        Events without an action are in the first sequence.
        """
        recent = batch.last(self.config.max_history_length)
        if recent.actions is None:
            behaviours = torch.zeros_like(recent.items.values)
        else:
            behaviours = (recent.actions.values - 1).clamp(min=0, max=self.behaviours - 1)
        rows, sequences = recent.items.row_ids(), []
        for behaviour in range(self.behaviours):
            mask = behaviours == behaviour
            lengths = torch.bincount(rows[mask], minlength=batch.num_requests)
            sequences.append(Jagged.from_lengths(recent.items.values[mask], lengths))
        return sequences
