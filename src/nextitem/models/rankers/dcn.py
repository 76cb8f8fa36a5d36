"""DCN: a network of explicit feature crosses, each layer one degree higher.

Wang et al., arXiv 1708.05123 (v1), and DCN V2, arXiv 2008.13535 (v2, and its mixture of low-rank experts). The cross
network reads all field vectors side by side; a deep network reads them beside it, or reads what the crosses give.

Shapes: P candidates, F fields, D width, X = F D, S tasks.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.models.rankers.deep import DeepConfig, deep_part, field_gates
from nextitem.models.rankers.ranking_model import RankingModel
from nextitem.nn.fields.fields import FieldCodes, FieldVectors
from nextitem.nn.ranking.cross_network import CrossMixture, CrossNetwork


class DCNConfig(DeepConfig):
    """Settings of DCN."""

    version: Literal["v1", "v2", "v2-mixture"] = "v2"
    """Weights of a cross: a vector, a matrix, low-rank experts."""
    crosses: int = Field(2, ge=1)
    """Cross layers."""
    structure: Literal["stacked", "parallel"] = "parallel"
    """The deep part reads the crosses, or stands beside them."""
    rank: int = Field(32, ge=1)
    """Of v2-mixture, of each expert."""
    cross_experts: int = Field(4, ge=1)
    """Of v2-mixture."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that nothing reads while the other settings are as they are, each with the reason."""
        is_mixture = self.version == "v2-mixture"
        mixture = configs.idle_unless(is_mixture, f"version is {self.version}", "rank", "cross_experts")
        return {**super().idle_fields(), **mixture}


class DCN(RankingModel):
    """Ranks by crosses of fields and a deep part."""

    Config = DCNConfig

    def __init__(self, config: DCNConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        tasks, fields, width = len(self.tasks), len(self.fields), len(self.fields) * config.width
        self.vectors = FieldVectors(self.fields, config.width)
        self.gates = field_gates(config, fields)
        self.cross: nn.Module
        if config.version == "v2-mixture":
            self.cross = CrossMixture(width, layers=config.crosses, rank=config.rank, experts=config.cross_experts)
        else:
            self.cross = CrossNetwork(width, layers=config.crosses, matrix=config.version == "v2")
        self.deep = deep_part(config, width, tasks=tasks)
        # A linear layer over both, side by side, is the sum of one over each.
        self.of_crosses = nn.Linear(width, tasks, bias=False) if config.structure == "parallel" else None

    def logits(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        """What crosses and network say together."""
        inputs_PX = self.gates(self.vectors(codes)).flatten(1)
        crossed_PX = self.cross(inputs_PX)
        out: Tensor = self.deep(crossed_PX if self.of_crosses is None else inputs_PX)
        return out if self.of_crosses is None else out + self.of_crosses(crossed_PX)
