"""Point-wise reward: the mean over a list of what a ranker predicts for each of its items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, cast

import torch
from torch import Tensor, nn

from nextitem.alignment.rewards.reward import Reward
from nextitem.core.batch import SequenceBatch
from nextitem.core.recommender import Recommender
from nextitem.core.roles import Ranker
from nextitem.data.examples.labelled_candidates import with_candidates


class PointWiseReward(Reward):
    """Mean probability of the items of a list, by a ranker; of several tasks, their sum with weights.

    Args:
        ranker: a trained model that scores candidates.
        weights: task -> weight.
        name: name of the reward.

    """

    def __init__(self, ranker: Recommender, weights: Mapping[str, float], *, name: str) -> None:
        self.ranker, self.weights, self.name = ranker.eval(), dict(weights), name

    @torch.no_grad()
    def score(self, batch: SequenceBatch, item_ids: Tensor) -> Tensor:
        """Return the means [B, G]; each item of a request is scored once, however many lists have it."""
        num_requests, num_lists, num_items = item_ids.shape
        rows = torch.arange(num_requests, device=item_ids.device)[:, None]
        span = int(item_ids.max()) + 1 if item_ids.numel() else 1
        keys, places = torch.unique(rows * span + item_ids.flatten(1), return_inverse=True)
        counts = torch.bincount(keys // span, minlength=num_requests)
        columns = torch.arange(len(keys), device=keys.device) - (counts.cumsum(0) - counts)[keys // span]
        candidates = torch.ones((num_requests, int(counts.max()) if len(counts) else 0), dtype=torch.int64)
        candidates = candidates.to(keys.device)
        candidates[keys // span, columns] = (keys % span).clamp(min=1)
        scores = cast(Ranker, self.ranker).score(with_candidates(batch, candidates, {}))
        total = torch.stack([weight * scores[task] for task, weight in self.weights.items()]).sum(0)
        of_items = total[rows, columns[places].view(num_requests, -1)].view(num_requests, num_lists, num_items)
        is_item = item_ids > 0
        return (of_items * is_item).sum(2) / is_item.sum(2).clamp(min=1)

    def to(self, device: torch.device | str) -> Self:
        """Move the ranker to a device."""
        cast(nn.Module, self.ranker).to(device)
        return self
