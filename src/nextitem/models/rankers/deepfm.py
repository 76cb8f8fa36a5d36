"""DeepFM: a factorisation machine and a network over the same field vectors.

Guo et al., arXiv 1703.04247. A candidate's logit is that of a linear model, plus the inner products of all pairs of
field vectors, plus the output of a network over the vectors. So low-order interactions need no hand-made crosses.

Notable
- Several tasks share the pairwise term, since they share its vectors.
- A bag (the items of a history) is one field. Its vector is the mean of its members' vectors.
- Field gates, if there are any, act on the input of the network, not on the factorisation machine.

Shapes: P candidates, F fields, D width, S tasks.
"""

from __future__ import annotations

from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.models.rankers.deep import DeepConfig, deep_part, field_gates
from nextitem.models.rankers.ranking_model import RankingModel
from nextitem.nn.fields.fields import FieldCodes, FieldVectors
from nextitem.nn.ranking.factorisation import pairwise_interactions


class DeepFMConfig(DeepConfig):
    """Settings of DeepFM."""


class DeepFM(RankingModel):
    """Ranker with the sum of first-order, second-order and deep logits."""

    Config = DeepFMConfig

    def __init__(self, config: DeepFMConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        tasks, fields = len(self.tasks), len(self.fields)
        self.linear = FieldVectors(self.fields, tasks, config.table, std=0.0)
        self.vectors = FieldVectors(self.fields, config.width, config.table)
        self.gates = field_gates(config, fields)
        self.deep = deep_part(config, fields * config.width, tasks=tasks)

    def logits(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        """Return the logits [P, S], y_FM + y_DNN (eq. 1)."""
        vectors_PFD = self.vectors(codes)
        shallow_PS = self.linear(codes).sum(1) + pairwise_interactions(vectors_PFD)[:, None]
        out: Tensor = shallow_PS + self.deep(self.gates(vectors_PFD).flatten(1))
        return out
