"""Wide & Deep: a linear model that remembers beside a network that generalises.

Cheng et al., arXiv 1606.07792. The wide part has one weight for each code of each field, crossed fields among them; the
deep part reads vectors of the same fields. Their logits are added and learnt together.

Notable
- The wide part reads every field that the deep part does, not crosses of installed and shown items alone.
- Optimizers stand in the recipe. The paper's are optimizer = "adagrad", and "ftrl" in [training.groups.wide]; the
  default recipe trains both parts by AdamW, which did better on the shop.

Shapes: P candidates, F fields, D width, S tasks.
"""

from __future__ import annotations

from torch import Tensor, nn

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.models.rankers.deep import DeepConfig, deep_part, field_gates
from nextitem.models.rankers.ranking_model import RankingModel
from nextitem.nn.fields.fields import FieldCodes, FieldVectors


class WideAndDeepConfig(DeepConfig):
    """Settings of WideAndDeep."""


class WideAndDeep(RankingModel):
    """Ranks by the sum of a linear and a deep logit."""

    Config = WideAndDeepConfig

    def __init__(self, config: WideAndDeepConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        tasks, fields = len(self.tasks), len(self.fields)
        self.wide = FieldVectors(self.fields, tasks)
        nn.init.zeros_(self.wide.table.weight)
        self.vectors = FieldVectors(self.fields, config.width)
        self.gates = field_gates(config, fields)
        self.deep = deep_part(config, fields * config.width, tasks=tasks)

    def logits(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        """The weights of the codes, and what the network makes of their vectors; its bias is that of both."""
        out: Tensor = self.wide(codes).sum(1) + self.deep(self.gates(self.vectors(codes)).flatten(1))
        return out
