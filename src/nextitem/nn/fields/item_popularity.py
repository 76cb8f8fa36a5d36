"""ItemPopularity: how often an item was a target before the request.

Shapes: P candidates of all requests, N items.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nextitem.core.batch import OWN_EVENTS, SequenceBatch
from nextitem.core.interactions import Interactions
from nextitem.nn.fields.kinds import DAY_MS, MOST, Field, FieldInputs, logarithmic


class ItemPopularity(Field):
    """The number of training events of an item before the request, within `days`, on a logarithmic scale.

    Counted up to the time of each request, so that no example sees its own future. Events of an undated log are all
    counted, except the example's own (OWN_EVENTS): with it, the counts that a ranker learns from would be larger than
    those that it is asked with, most of all for rare items. An item without another event then has the code of one
    event, as it has in examples of which it is a negative; a code that only targets have would reveal the label.
    """

    keys: Tensor
    distinct: Tensor
    starts: Tensor

    def __init__(self, num_items: int, days: int | None) -> None:
        super().__init__()
        self.size = MOST
        self.days = days
        self.register_buffer("starts", torch.zeros(num_items + 2, dtype=torch.int64))
        self.register_buffer("keys", torch.zeros(0, dtype=torch.int64))  # item and rank of time, in one number
        self.register_buffer("distinct", torch.zeros(0, dtype=torch.int64))  # times

    def fit(self, requests: SequenceBatch, log: Interactions) -> None:
        """Keeps the times of each item's events."""
        events = log.targets_only()
        items = torch.from_numpy(events.item_ids).long()
        counts = torch.bincount(items, minlength=len(self.starts) - 1)
        self.starts.copy_(nn.functional.pad(counts.cumsum(0), (1, 0)))
        if events.timestamps is not None:
            self.distinct, rank = torch.unique(torch.tensor(events.timestamps), return_inverse=True)
            self.keys = (items * (len(self.distinct) + 1) + rank).sort().values

    def forward(self, asked: FieldInputs) -> Tensor:
        """[P]."""
        if asked.times is None or not len(self.distinct):
            counts = self._without_own(self.starts[asked.items + 1] - self.starts[asked.items], asked.batch)
        else:
            counts = self._before(asked.items, asked.times)
            if self.days is not None:
                counts = counts - self._before(asked.items, asked.times - self.days * DAY_MS)
        return logarithmic(counts.double())

    def _without_own(self, counts: Tensor, batch: SequenceBatch) -> Tensor:
        own = batch.candidate_features.get(OWN_EVENTS)
        return counts if own is None else torch.minimum(counts, (counts - own.values.long()).clamp(min=1))

    def _before(self, items: Tensor, times: Tensor) -> Tensor:
        rank = torch.searchsorted(self.distinct, times)
        return torch.searchsorted(self.keys, items * (len(self.distinct) + 1) + rank) - self.starts[items]
