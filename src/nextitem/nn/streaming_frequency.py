"""StreamingFrequency: how likely an item is to be in a batch, learnt while the stream passes.

Yi et al., Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations, RecSys 2019, algorithm 2: an
item's mean gap between two steps that hold it is a moving average, B <- (1 - alpha) B + alpha (t - A), A <- t, and its
probability is 1 / B.

Notable
- One exact entry an item, where the paper hashes (and takes the largest B of several tables): items are numbered
  1..N here and have vectors of their own, beside which two numbers are nothing.
- An item's n-th gap has the weight max(alpha, 1 / n), so that B is the plain mean of the first 1 / alpha gaps; the
  paper starts from a guess. The first gap counts from the start of the stream.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StreamingFrequency(nn.Module):
    """Probabilities of items 1..N; `rate` is alpha: about 1 / rate occurrences are remembered."""

    gaps: Tensor
    last: Tensor
    seen: Tensor
    step: Tensor

    def __init__(self, num_items: int, *, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("gaps", torch.full((num_items + 1,), torch.inf))  # B
        self.register_buffer("last", torch.zeros(num_items + 1, dtype=torch.int64))  # A
        self.register_buffer("seen", torch.zeros(num_items + 1, dtype=torch.int64))  # n
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))  # t

    @torch.no_grad()
    def update(self, item_ids: Tensor) -> None:
        """One step that holds these distinct items [n]."""
        self.step += 1
        self.seen[item_ids] += 1
        gap = (self.step - self.last[item_ids]).float()
        weight = (1 / self.seen[item_ids]).clamp(min=self.rate)
        former = torch.where(self.seen[item_ids] > 1, self.gaps[item_ids], gap)
        self.gaps[item_ids] = former + weight * (gap - former)
        self.last[item_ids] = self.step

    def probability(self, item_ids: Tensor) -> Tensor:
        """How likely a step is to hold each of the items, in the shape of `item_ids`; 0 where none has yet."""
        return 1 / self.gaps[item_ids]
