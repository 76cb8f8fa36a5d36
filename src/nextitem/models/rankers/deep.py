"""Deep part of rankers: its settings, and the functions that build its parts from them.

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
    """Width of the vector of a field (D)."""
    hidden: tuple[int, ...] = (128, 64)
    """Widths of the layers that tasks share; with experts, those of each expert."""
    tower: tuple[int, ...] = ()
    """Widths of the layers of each task's tower, above the shared layers."""
    activation: Activation = "relu"
    """Activation function of the shared layers and of the towers."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate after each shared layer."""
    sharing: Sharing = "shared-bottom"
    """Way in which several tasks share layers (nn/ranking/task_towers.py)."""
    experts: int = Field(4, ge=1)
    """Number of experts of mmoe; in ple the number of shared experts, and of those of each task."""
    levels: int = Field(2, ge=1)
    """Number of extraction networks of ple."""
    field_gates: Literal["relu", "sigmoid"] | None = None
    """Activation of SENet gates, which weigh the fields that the deep part reads; none: no gates."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that are unused with the current values of the other fields: name -> reason."""
        sharing = f"sharing is {self.sharing}"
        return {
            **super().idle_fields(),
            **configs.idle_unless(self.sharing != "shared-bottom", sharing, "experts"),
            **configs.idle_unless(self.sharing == "ple", sharing, "levels"),
        }


def field_gates(config: DeepConfig, num_fields: int) -> nn.Module:
    """Build the module that weighs the vectors of the fields [P, F, D] before the deep part, or the identity."""
    return nn.Identity() if config.field_gates is None else SENet(num_fields, gate=config.field_gates)


def history_width(vectors: FieldVectors, *, heads: int = 1) -> int:
    """Return the width of the concatenated fields of a history item (X).

    Raises UserError if no field describes an item alone, or if `heads` does not divide the width.
    """
    if not vectors.item_width:
        raise UserError(
            "model.fields names no field of items alone, so a history cannot be read; add one, such as item.id"
        )
    if vectors.item_width % heads:
        raise UserError(
            f"model.heads = {heads} does not divide {vectors.item_width}, the width of an item's fields; change either"
        )
    return vectors.item_width


def deep_part(config: DeepConfig, width: int, *, tasks: int) -> TaskTowers:
    """Build the network that maps inputs [P, `width`] to the logits of all tasks [P, S]."""
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
