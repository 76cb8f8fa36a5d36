"""LR: logistic regression over fields.

McMahan et al., Ad Click Prediction: a View from the Trenches, KDD 2013. Each code of each field has one weight for each
task. A candidate's logit is the sum of the weights of its codes. With FTRL-proximal (training.optimizer = "ftrl") most
weights of rare codes remain exactly 0.

Notable
- The codes of a bag (the items of a history) contribute the mean of their weights.
- Interactions between fields are crossed fields (nn/fields/fields.py, cross.*), as in the paper's system.

Shapes: P candidates, F fields, S tasks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.models.rankers.config import RankingConfig
from nextitem.models.rankers.ranking_model import RankingModel
from nextitem.nn.fields.fields import FieldCodes, FieldVectors


class LRConfig(RankingConfig):
    """Settings of LR."""


class LR(RankingModel):
    """Ranker with a sum of one weight for each field."""

    Config = LRConfig

    def __init__(self, config: LRConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.vectors = FieldVectors(self.fields, len(self.tasks), config.table, std=0.0)
        self.bias = nn.Parameter(torch.zeros(len(self.tasks)))

    def logits(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        """Return the logits [P, S]: the sum over fields of the weights of their codes, plus a bias."""
        out: Tensor = self.vectors(codes).sum(1) + self.bias
        return out
