"""ItemPopularity: a field that counts how often an item was a target before the request.

Shapes: P candidates of all requests, N items.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nextitem.core.batch import OWN_EVENTS, SequenceBatch
from nextitem.core.interactions import Interactions
from nextitem.nn.fields.kinds import DAY_MS, NUM_LOG_CODES, Field, FieldInputs, logarithmic


class ItemPopularity(Field):
    """Number of training events of an item before the request, on a logarithmic scale.

    `days` limits the count to the last days before the request; None counts all of them. Events are counted up to the
    time of each request, so no example sees its own future.

    In a log without times all events are counted, except the example's own (OWN_EVENTS). With it, counts would be
    larger in training than at request time, most of all for rare items. An item without another event then has the
    code of one event, as in examples where it is a negative. A code that only targets have would reveal the label.
    """

    keys: Tensor
    distinct: Tensor
    starts: Tensor

    def __init__(self, num_items: int, days: int | None) -> None:
        super().__init__()
        self.size = NUM_LOG_CODES
        self.days = days
        self.register_buffer("starts", torch.zeros(num_items + 2, dtype=torch.int64))
        self.register_buffer("keys", torch.zeros(0, dtype=torch.int64))  # sorted; item and rank of time in one number
        self.register_buffer("distinct", torch.zeros(0, dtype=torch.int64))  # sorted times

    def fit(self, requests: SequenceBatch, log: Interactions) -> None:
        """Store the times of each item's events."""
        events = log.targets_only()
        items = torch.from_numpy(events.item_ids).long()
        counts = torch.bincount(items, minlength=len(self.starts) - 1)
        self.starts.copy_(nn.functional.pad(counts.cumsum(0), (1, 0)))
        if events.timestamps is not None:
            self.distinct, rank = torch.unique(torch.tensor(events.timestamps), return_inverse=True)
            self.keys = (items * (len(self.distinct) + 1) + rank).sort().values

    def take_over(self, former: ItemPopularity) -> None:
        """Take over the events of a former catalogue (roles.TakesOver); new items have none."""
        num_new = len(self.starts) - len(former.starts)
        self.starts.copy_(torch.cat([former.starts, former.starts[-1:].expand(num_new)]))
        self.keys, self.distinct = former.keys.clone(), former.distinct.clone()

    def forward(self, inputs: FieldInputs) -> Tensor:
        """Return codes [P]."""
        if inputs.times is None or not len(self.distinct):
            counts = self._without_own(self.starts[inputs.items + 1] - self.starts[inputs.items], inputs.batch)
        else:
            counts = self._count_before(inputs.items, inputs.times)
            if self.days is not None:
                counts = counts - self._count_before(inputs.items, inputs.times - self.days * DAY_MS)
        return logarithmic(counts.double())

    def _without_own(self, counts: Tensor, batch: SequenceBatch) -> Tensor:
        own_events = batch.candidate_features.get(OWN_EVENTS)
        if own_events is None:
            return counts
        return torch.minimum(counts, (counts - own_events.values.long()).clamp(min=1))

    def _count_before(self, items: Tensor, times: Tensor) -> Tensor:
        rank = torch.searchsorted(self.distinct, times)
        return torch.searchsorted(self.keys, items * (len(self.distinct) + 1) + rank) - self.starts[items]
