"""DCN: a network of explicit feature crosses, whose degree rises by one with each layer.

Wang et al., arXiv 1708.05123 (v1), and DCN V2, arXiv 2008.13535 (v2, and its mixture of low-rank experts). The cross
network reads the concatenated vectors of all fields. A deep network reads the same vectors in parallel, or the output
of the cross network.

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
    """Weights of a cross layer: a vector (v1), a matrix (v2) or a mixture of low-rank experts (v2-mixture)."""
    crosses: int = Field(2, ge=1)
    """Number of cross layers."""
    structure: Literal["stacked", "parallel"] = "parallel"
    """Input of the deep part: the output of the cross layers (stacked) or the fields (parallel)."""
    rank: int = Field(32, ge=1)
    """Rank of the matrices of each expert in v2-mixture."""
    cross_experts: int = Field(4, ge=1)
    """Number of experts of a cross layer in v2-mixture."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that are unused with the current values of the other fields: name -> reason."""
        is_mixture = self.version == "v2-mixture"
        mixture = configs.idle_unless(is_mixture, f"version is {self.version}", "rank", "cross_experts")
        return {**super().idle_fields(), **mixture}


class DCN(RankingModel):
    """Ranker with cross layers over fields and a deep part."""

    Config = DCNConfig

    def __init__(self, config: DCNConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        tasks, fields, width = len(self.tasks), len(self.fields), len(self.fields) * config.width
        self.vectors = FieldVectors(self.fields, config.width, config.table)
        self.gates = field_gates(config, fields)
        self.cross: nn.Module
        if config.version == "v2-mixture":
            self.cross = CrossMixture(width, layers=config.crosses, rank=config.rank, experts=config.cross_experts)
        else:
            self.cross = CrossNetwork(width, layers=config.crosses, matrix=config.version == "v2")
        self.deep = deep_part(config, width, tasks=tasks)
        # A linear layer over the concatenation of both outputs is the sum of a linear layer over each.
        self.of_crosses = nn.Linear(width, tasks, bias=False) if config.structure == "parallel" else None

    def logits(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        """Return the logits [P, S] of the cross network and the deep part together."""
        inputs_PX = self.gates(self.vectors(codes)).flatten(1)
        crossed_PX = self.cross(inputs_PX)
        out: Tensor = self.deep(crossed_PX if self.of_crosses is None else inputs_PX)
        return out if self.of_crosses is None else out + self.of_crosses(crossed_PX)
