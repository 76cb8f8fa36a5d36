"""Wide & Deep: a linear model that memorises beside a network that generalises.

Cheng et al., arXiv 1606.07792. The wide part has one weight for each code of each field, including crossed fields. The
deep part reads vectors of the same fields. Both are trained jointly on the sum of their logits.

Notable
- The wide part reads every field that the deep part reads; the paper's reads only crosses of installed and shown items.
- Optimizers are set in the recipe. Those of the paper are optimizer = "adagrad", and "ftrl" in [training.groups.wide].
  The default recipe trains both parts with AdamW, which gave better results on the simulated shop.

Shapes: P candidates, F fields, D width, S tasks.
"""

from __future__ import annotations

from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.models.rankers.deep import DeepConfig, deep_part, field_gates
from nextitem.models.rankers.ranking_model import RankingModel
from nextitem.nn.fields.fields import FieldCodes, FieldVectors


class WideAndDeepConfig(DeepConfig):
    """Settings of Wide & Deep."""


class WideAndDeep(RankingModel):
    """Ranker with the sum of a linear and a deep logit."""

    Config = WideAndDeepConfig

    def __init__(self, config: WideAndDeepConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        tasks, fields = len(self.tasks), len(self.fields)
        self.wide = FieldVectors(self.fields, tasks, config.table, std=0.0)
        self.vectors = FieldVectors(self.fields, config.width, config.table)
        self.gates = field_gates(config, fields)
        self.deep = deep_part(config, fields * config.width, tasks=tasks)

    def logits(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        """Return the logits [P, S]: the sum of the weights of the codes, plus the output of the network.

        The bias of the network is the bias of both parts.
        """
        out: Tensor = self.wide(codes).sum(1) + self.deep(self.gates(self.vectors(codes)).flatten(1))
        return out
