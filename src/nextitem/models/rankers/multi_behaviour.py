"""Several behaviour sequences: clicks, purchases, ... each read with the others and the candidate in view.

The history is split by action. By cross attention each event takes from the other sequences what goes with it (a click
from the purchases that followed such clicks); target attention then sums each sequence up for the candidate, as in DIN
(arXiv 1706.06978). Sequences by behaviour that attend to one another: e.g. Gu et al., DMT, CIKM 2020; Yuan et al.,
MB-STR, SIGIR 2022.

Notable
- Cross attention acts between sequences only, and once: it does not depend on the candidate, so it is done once a
  request.

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
    """Settings of MultiBehaviour."""

    activation: Activation = "dice"
    behaviours: int = Field(2, ge=1)
    """Sequences: the first actions by name have one each; the last takes the others."""
    heads: int = Field(2, ge=1)
    """Of cross attention."""
    unit: tuple[int, int] = (80, 40)
    """Widths of the activation units' hidden layers."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that nothing reads while the other settings are as they are, each with the reason."""
        alone = configs.idle_unless(self.behaviours > 1, "behaviours is 1: there is no other sequence", "heads")
        return {**super().idle_fields(), **alone}


class MultiBehaviour(RankingModel):
    """Ranks by fields and by several histories as the candidate sees them."""

    Config = MultiBehaviourConfig

    def __init__(self, config: MultiBehaviourConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.behaviours = config.behaviours
        self.vectors = FieldVectors(self.fields, config.width)
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
        """What the network makes of the fields and of each sequence as the candidate sees it."""
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
        """The recent items, split by their actions; events without one are in the first."""
        recent = batch.last(self.config.max_history_length)
        if recent.actions is None:
            sequence = torch.zeros_like(recent.items.values)
        else:
            sequence = (recent.actions.values - 1).clamp(min=0, max=self.behaviours - 1)
        rows, found = recent.items.row_ids(), []
        for number in range(self.behaviours):
            kept = sequence == number
            lengths = torch.bincount(rows[kept], minlength=batch.num_requests)
            found.append(Jagged.from_lengths(recent.items.values[kept], lengths))
        return found
