"""Fields that count how often an item was a target before the request, alone or within its category.

Shapes: P candidates of all requests, N items.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nextitem.core.batch import OWN_EVENTS, SequenceBatch
from nextitem.core.interactions import Interactions
from nextitem.nn.fields.kinds import DAY_MS, NUM_LOG_CODES, Field, FieldInputs, ItemCategory, logarithmic

RATIO_SCALE = 2.0 ** (NUM_LOG_CODES // 4)  # the mean popularity of a category has a code in the middle of the scale


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
        self.fit_to(torch.from_numpy(events.item_ids).long(), events)

    def fit_to(self, items: Tensor, events: Interactions) -> None:
        """Store the times of the events of each item, or of each other value that `items [T]` contains."""
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
        return logarithmic(self.counts(inputs.items, inputs).double())

    def counts(self, items: Tensor, inputs: FieldInputs) -> Tensor:
        """Return the number of events before each candidate's request, [P]; `items [P]` are the counted values."""
        if inputs.times is None or not len(self.distinct):
            return self._without_own(self.starts[items + 1] - self.starts[items], inputs.batch)
        counts = self._count_before(items, inputs.times)
        if self.days is None:
            return counts
        return counts - self._count_before(items, inputs.times - self.days * DAY_MS)

    def _without_own(self, counts: Tensor, batch: SequenceBatch) -> Tensor:
        own_events = batch.candidate_features.get(OWN_EVENTS)
        if own_events is None:
            return counts
        return torch.minimum(counts, (counts - own_events.values.long()).clamp(min=1))

    def _count_before(self, items: Tensor, times: Tensor) -> Tensor:
        rank = torch.searchsorted(self.distinct, times)
        return torch.searchsorted(self.keys, items * (len(self.distinct) + 1) + rank) - self.starts[items]


class PopularityWithin(Field):
    """Popularity of an item relative to the items that share its value of a categorical column.

    It is (n + 1) / (m + 1), on a logarithmic scale: n is the item's number of training events before the request, m the
    mean number of those of the items with this value. Both are counted as in ItemPopularity.
    """

    num_members: Tensor

    def __init__(self, num_items: int, field: ItemCategory) -> None:
        super().__init__()
        self.field, self.size = field, NUM_LOG_CODES
        self.of_item, self.of_value = ItemPopularity(num_items, None), ItemPopularity(field.size - 1, None)
        members = torch.bincount(field.codes[1:], minlength=field.size)
        self.register_buffer("num_members", members, persistent=False)

    def fit(self, requests: SequenceBatch, log: Interactions) -> None:
        """Store the times of the events of each item and of each value."""
        events = log.targets_only()
        items = torch.from_numpy(events.item_ids).long()
        self.of_item.fit_to(items, events)
        self.of_value.fit_to(self.field.of_items(items), events)

    def forward(self, inputs: FieldInputs) -> Tensor:
        """Return codes [P]; 0 for an item without a value."""
        values = self.field.of_items(inputs.items)
        means = self.of_value.counts(values, inputs) / self.num_members[values].clamp(min=1)
        ratios = (self.of_item.counts(inputs.items, inputs) + 1) / (means.double() + 1)
        return logarithmic(ratios * RATIO_SCALE) * (values > 0)
