"""What rankers with a deep part share: its settings, and what they compose of them.

Shapes: P candidates, F fields, D width, X input width, S tasks.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from nextitem.core import config as configs
from nextitem.core.errors import UserError
from nextitem.models.rankers.config import RankingConfig
from nextitem.nn.fields.fields import FieldVectors
from nextitem.nn.ranking.mlp import Activation
from nextitem.nn.ranking.senet import SENet
from nextitem.nn.ranking.task_towers import Sharing, TaskTowers


class DeepConfig(RankingConfig):
    """Settings of rankers with a deep part."""

    width: int = Field(16, ge=1)
    """D, of a field's vector."""
    hidden: tuple[int, ...] = (128, 64)
    """Widths of the layers that tasks share (of each expert)."""
    tower: tuple[int, ...] = ()
    """Widths of the layers that each task has of its own."""
    activation: Activation = "relu"
    """Of both."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """After each shared layer."""
    sharing: Sharing = "shared-bottom"
    """What several tasks share (nn/ranking/task_towers.py)."""
    experts: int = Field(4, ge=1)
    """Of mmoe; of ple: shared ones, and each task's own."""
    levels: int = Field(2, ge=1)
    """Extraction networks of ple."""
    field_gates: Literal["relu", "sigmoid"] | None = None
    """SENet over the fields that the deep part reads."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that nothing reads while the other settings are as they are, each with the reason."""
        sharing = f"sharing is {self.sharing}"
        return {
            **super().idle_fields(),
            **configs.idle_unless(self.sharing != "shared-bottom", sharing, "experts"),
            **configs.idle_unless(self.sharing == "ple", sharing, "levels"),
        }


def field_gates(config: DeepConfig, fields: int) -> nn.Module:
    """What weighs the fields [P, F, D] before the deep part."""
    return nn.Identity() if config.field_gates is None else SENet(fields, gate=config.field_gates)


def history_width(vectors: FieldVectors, *, heads: int = 1) -> int:
    """X, the width of a history item's fields; UserError where there are none, or `heads` does not divide it."""
    if not vectors.item_width:
        raise UserError("model.fields names nothing of items alone (item.id, ...), so a history cannot be read")
    if vectors.item_width % heads:
        raise UserError(f"model.heads = {heads} does not divide {vectors.item_width}, the width of an item's fields")
    return vectors.item_width


def deep_part(config: DeepConfig, width: int, *, tasks: int) -> TaskTowers:
    """[P, X] -> logits [P, S]."""
    return TaskTowers(
        width,
        tasks=tasks,
        hidden=config.hidden,
        tower=config.tower,
        sharing=config.sharing,
        experts=config.experts,
        levels=config.levels,
        activation=config.activation,
        dropout=config.dropout,
    )
