"""StreamingFrequency: an online estimate of how likely a batch is to contain an item.

Yi et al., Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations, RecSys 2019, algorithm 2. The
mean gap between two steps that contain an item is a moving average: B <- (1 - alpha) B + alpha (t - A), A <- t. The
probability of the item is 1 / B.

Notable
- Each item has one exact entry. The paper hashes items, and takes the largest B of several tables. Here items are
  numbered 1..N and have vectors of their own, so two more numbers each cost next to nothing.
- If several processes share the steps, each knows its own items at once, and those of all after the loss of the step.
- The n-th gap of an item has the weight max(alpha, 1 / n), so B is the plain mean of the first 1 / alpha gaps. The
  paper starts from a guess. The first gap counts from the start of the stream.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nextitem.distributed import processes


class StreamingFrequency(nn.Module):
    """Running estimates of the probabilities of items 1..N.

    `rate` is alpha: an estimate covers about the last 1 / rate occurrences of an item.
    """

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
        # What this process has changed in this step, to be undone: items, and their former gaps, steps and counts.
        self._former: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    @torch.no_grad()
    def update(self, item_ids: Tensor) -> None:
        """Update the estimates by one step that contains these distinct items [n]."""
        if processes.world_size() > 1:
            self._former = (item_ids, self.gaps[item_ids], self.last[item_ids], self.seen[item_ids])
        self._update(item_ids)

    @torch.no_grad()
    def after_batch(self, weight: float) -> None:
        """Replace the update by that of the items of all processes (roles.HasBatchHook)."""
        if processes.world_size() == 1:
            return
        item_ids = torch.zeros(0, dtype=torch.int64)
        if self._former is not None:
            item_ids, gaps, last, seen = self._former
            self.gaps[item_ids], self.last[item_ids], self.seen[item_ids] = gaps, last, seen
            self.step -= 1
            self._former = None
        all_ids = torch.cat(processes.gather(item_ids.cpu())).to(self.gaps.device)
        if len(all_ids):
            self._update(all_ids.unique())

    def _update(self, item_ids: Tensor) -> None:
        self.step += 1
        self.seen[item_ids] += 1
        gap = (self.step - self.last[item_ids]).float()
        weight = (1 / self.seen[item_ids]).clamp(min=self.rate)
        former = torch.where(self.seen[item_ids] > 1, self.gaps[item_ids], gap)
        self.gaps[item_ids] = former + weight * (gap - former)
        self.last[item_ids] = self.step

    def probability(self, item_ids: Tensor) -> Tensor:
        """Return the probability that a step contains each item, in the shape of `item_ids`.

        The probability is 0 for items that no step has contained yet.
        """
        return 1 / self.gaps[item_ids]
