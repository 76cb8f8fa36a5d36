"""Item scorers with known scores, for compositions of models: a table, and the next item of a cycle or chance."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.core.top_items import top_items


class PlantedConfig(configs.Config):
    """Settings of planted scorers."""

    rows: tuple[tuple[float, ...], ...] = ()
    """Scores of items 1..N after each last item, from item 1 on; empty: see the class."""
    right_after: int = Field(1, ge=0)
    """Number of items, from item 1 on, after which the scorer prefers the next item of the cycle."""
    seed: int = 0
    """Seed of the other preferences."""


class Planted(Recommender):
    """Scorer with a table of scores by the last item, or one that knows the next item of a cycle after some items."""

    Config = PlantedConfig
    config: PlantedConfig
    can_rank_unseen_items = True

    def fit(self, train: Dataset) -> None:
        """Learn nothing: the scores are in the settings."""

    def scores(self, batch: SequenceBatch) -> Tensor:
        """Return the scores after the last item of each history, [B, N + 1]."""
        last = batch.items.values[batch.items.offsets[1:] - 1]
        if self.config.rows:
            return torch.nn.functional.pad(torch.tensor(self.config.rows), (1, 0))[last - 1]
        generator = torch.Generator().manual_seed(self.config.seed)
        table = torch.rand(self.num_items + 1, self.num_items + 1, generator=generator)
        after = torch.arange(1, self.config.right_after + 1)
        table[after, after % self.num_items + 1] = 20.0
        return table[last]

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        return top_items(self.scores(batch), batch, k)
