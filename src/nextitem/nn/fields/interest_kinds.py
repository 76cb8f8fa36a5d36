"""Kinds of fields that say how strong a user's recent, lasting and current interest in a candidate's value is.

They compare decayed counts of events (EventWeights). Shapes: B requests, P candidates of all requests, N items.
"""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.interactions import Interactions
from nextitem.nn.fields.event_weights import SESSION, EventWeights, Weighting
from nextitem.nn.fields.kinds import HOUR_MS, NUM_LOG_CODES, Field, FieldInputs, ItemField, ItemFieldReader, logarithmic

PRIOR_EVENTS = 2.0  # weight of the catalogue's shares, in events, beside a user's own events
SHARE_SCALE = 2.0 ** (NUM_LOG_CODES // 2 - 1)  # a share of 1 has the last code of the logarithmic scale
COUNT_SCALE = 16.0  # decayed counts are fractions: 1/16 of an event has code 1


class InterestShare(ItemFieldReader):
    """Share of the candidate's value of an item field among the weighted events of the user, on a logarithmic scale.

    The share is (n + a p) / (N + a): n is the weight of the user's events with this value, N that of all their events
    with any value, p the share of the catalogue's items that have the value, and a PRIOR_EVENTS. So a user without
    events has the catalogue's shares, and each event counts as evidence against them.
    """

    prior: Tensor

    def __init__(self, field: ItemField, weighting: Weighting, num_items: int) -> None:
        super().__init__(field)
        self.weighting = weighting
        codes = cast(Tensor, field.of_items(torch.arange(num_items + 1)))
        counts = torch.bincount(codes[codes > 0], minlength=field.size).double()
        self.register_buffer("prior", counts / counts.sum().clamp(min=1), persistent=False)

    def forward(self, inputs: FieldInputs) -> Tensor:
        """Return codes [P]; 0 for a candidate without a value, and for every candidate if there is no such event."""
        events = EventWeights.of_history(inputs)
        codes = cast(Tensor, self.field.of_items(inputs.items))
        has_value = cast(Tensor, self.field.of_items(events.items.values)) > 0
        weights = events.of(self.weighting) * has_value
        totals = weights.new_zeros(events.items.num_rows).index_add(0, events.row_ids(), weights)[inputs.rows]
        own = events.sums(self.field, inputs.items, inputs.rows, weights)
        share = (own + PRIOR_EVENTS * self.prior[codes]) / (totals + PRIOR_EVENTS)
        return logarithmic(share * SHARE_SCALE) * ((codes > 0) & (totals > 0))


class EventEvidence(Field):
    """Weight of all events of the user, the evidence behind InterestShare, on a logarithmic scale."""

    scope: ClassVar[Literal["request", "candidate"]] = "request"
    size = NUM_LOG_CODES

    def __init__(self, weighting: Weighting) -> None:
        super().__init__()
        self.weighting = weighting

    def forward(self, inputs: FieldInputs) -> Tensor:
        """Return codes [B]."""
        return logarithmic(EventWeights.of_history(inputs).totals(self.weighting) * COUNT_SCALE)


class SessionMinutes(Field):
    """Minutes from the first event of the current session to the request, on a logarithmic scale."""

    scope: ClassVar[Literal["request", "candidate"]] = "request"
    size = NUM_LOG_CODES

    def forward(self, inputs: FieldInputs) -> Tensor:
        """Return codes [B]; 0 if no event belongs to the session."""
        events, now = EventWeights.of_history(inputs), inputs.batch.request_times
        if now is None or events.times is None:
            return torch.zeros_like(inputs.batch.items.lengths)
        is_session = events.of(SESSION) > 0
        rows, times = events.row_ids()[is_session], events.times[is_session]
        first = now.scatter_reduce(0, rows, times, "amin")  # the events' times are all before the request's
        return logarithmic((now - first) * 60 / HOUR_MS + 1) * (first < now)


class NotClicked(ItemFieldReader):
    """Weighted number of times that a user was shown the candidate's value without a positive label.

    Items whose label is unknown, or may still arrive, do not count.

    Args:
        field: item field of the value.
        weighting: weights of what was shown.
        label: name of the label.
        delay_ms: milliseconds within which a label may still arrive.

    """

    def __init__(self, field: ItemField, weighting: Weighting, *, label: str, delay_ms: float) -> None:
        super().__init__(field)
        self.weighting, self.label, self.delay_ms = weighting, label, delay_ms

    def fit(self, requests: SequenceBatch, log: Interactions) -> None:
        """Fit the item field that it reads."""
        self.field.fit(requests, log)

    def forward(self, inputs: FieldInputs) -> Tensor:
        """Return codes [P]; 0 if nothing of the kind was shown."""
        batch, now = inputs.batch, inputs.batch.request_times
        if (
            batch.shown_items is None
            or batch.shown_times is None
            or now is None
            or self.label not in batch.shown_labels
        ):
            return torch.zeros_like(inputs.items)
        if "shown" not in inputs.events:
            count = inputs.max_history_length
            inputs.events["shown"] = EventWeights(
                batch.shown_items.last(count), batch.shown_times.last(count).values, now
            )
        events = inputs.events["shown"]
        assert events.times is not None
        labels = batch.shown_labels[self.label].last(inputs.max_history_length).values
        is_final = now[events.row_ids()] - events.times > self.delay_ms
        weights = events.of(self.weighting) * ((labels <= 0) & is_final)
        return logarithmic(events.sums(self.field, inputs.items, inputs.rows, weights) * COUNT_SCALE)
