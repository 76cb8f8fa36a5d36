"""True value of lists in the simulated shop: expected clicks or purchases of a customer who goes down the list."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.data.shop.catalog import FIRST_ITEM, FIRST_USER
from nextitem.data.shop.list_truth import ListEffects, expected_clicks, expected_purchases
from nextitem.data.shop.truth import NUM_SLOTS, ShopTruth


class ShopJudge:
    """Expected number of clicks and purchases of a list (data/shop/list_truth.py).

    Args:
        truth: ground truth of the shop that the data were sampled from.
        dataset: the data, in the numbering of items that lists have.
        weights: weight of an expected click and of an expected purchase: {"click": 1.0}.
        effects: what the items of a list do to each other; None: complements and fatigue as `ListEffects` has them.

    """

    def __init__(
        self, truth: ShopTruth, dataset: Dataset, weights: Mapping[str, float], *, effects: ListEffects | None = None
    ) -> None:
        self.truth, self.users, self.weights, self.effects = truth, dataset.users, dict(weights), effects
        self.rows = np.concatenate([[-1], dataset.catalog.ids.external.to_numpy().astype(np.int64) - FIRST_ITEM])

    def value(self, batch: SequenceBatch, item_ids: Tensor) -> Tensor:
        """Return the expected value of the first NUM_SLOTS items of each list [B, K], [B] float64; 0 is padding."""
        assert batch.user_ids is not None
        assert batch.request_times is not None
        numbers = self.users.numbers_of(batch.user_ids.cpu().numpy())
        users = self.users.ids.external.to_numpy()[numbers - 1].astype(np.int64) - FIRST_USER
        items = self.rows[item_ids[:, :NUM_SLOTS].cpu().numpy()]
        times = batch.request_times.cpu().numpy() // 1000
        last = self.rows[last_items(batch).cpu().numpy()]
        total = np.zeros(items.shape)
        for label, expected in (("click", expected_clicks), ("purchase", expected_purchases)):
            if self.weights.get(label):
                values = expected(self.truth, users, items, times, last_items=last, effects=self.effects)
                total += self.weights[label] * values
        return torch.from_numpy(total.sum(1))


def last_items(batch: SequenceBatch) -> Tensor:
    """Return the last item of each history, [B] int64; 0 without one."""
    lengths, offsets = batch.items.lengths, batch.items.offsets
    last = torch.zeros_like(lengths)
    has_event = lengths > 0
    last[has_event] = batch.items.values[offsets[1:][has_event] - 1]
    return last
