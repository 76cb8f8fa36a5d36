"""EventWeights: weights of the events before a request, by age, session and action, and their sums by value.

Shapes: B requests, T events of all requests, P candidates of all requests, V distinct pairs of a request and a value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from nextitem.core.jagged import Jagged

if TYPE_CHECKING:
    from nextitem.nn.fields.kinds import FieldInputs, ItemField

DAY_MS = 86_400_000
SESSION_GAP_MS = 1_800_000  # events of a session follow each other within 30 minutes


@dataclass(frozen=True)
class Weighting:
    """Weight of an event: 0.5 ** (age / half-life), or 1 within the current session and 0 before it.

    Attributes:
        half_life: days, or events if the log has no times; None: the current session.
        action: code of the action that counts (Catalog.events); 0: all actions.

    """

    half_life: float | None
    action: int = 0


SESSION = Weighting(None)


@dataclass(frozen=True, eq=False)
class EventWeights:
    """Events before each request, their weights, and sums of them. All of it is computed once for a batch.

    An event at the time of its request, or later, has the weight 0.

    Attributes:
        items: items of the events, one row for each request, oldest first.
        times: times of the events in milliseconds, or None.
        request_times: times of the requests in milliseconds [B], or None.
        actions: action codes of the events, or None.

    """

    items: Jagged
    times: Tensor | None
    request_times: Tensor | None
    actions: Tensor | None = None
    weights: dict[Weighting, Tensor] = field(default_factory=dict)
    places: dict[ItemField, tuple[Tensor, int, Tensor]] = field(default_factory=dict)
    rows: list[Tensor] = field(default_factory=list)

    @classmethod
    def of_history(cls, inputs: FieldInputs) -> EventWeights:
        """Return the latest events of the histories of a batch."""
        if "history" not in inputs.events:
            batch, count = inputs.batch, inputs.max_history_length
            times, actions = (
                None if column is None else column.last(count).values for column in (batch.timestamps, batch.actions)
            )
            inputs.events["history"] = cls(inputs.recent, times, batch.request_times, actions)
        return inputs.events["history"]

    def row_ids(self) -> Tensor:
        """Return the request of each event, [T]."""
        if not self.rows:
            self.rows.append(self.items.row_ids())
        return self.rows[0]

    def of(self, weighting: Weighting) -> Tensor:
        """Return the weight of each event, [T] float64."""
        if weighting not in self.weights:
            self.weights[weighting] = self._weights(weighting)
        return self.weights[weighting]

    def totals(self, weighting: Weighting) -> Tensor:
        """Return the sum of the weights of each request's events, [B] float64."""
        weights = self.of(weighting)
        return weights.new_zeros(self.items.num_rows).index_add(0, self.row_ids(), weights)

    def sums(self, field: ItemField, candidates: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the sum of the weights of those events that share a candidate's value of an item field.

        Each pair of a request and a value is summed once, whatever the number of candidates that have it.

        Args:
            field: field of items with one code for each item.
            candidates: item ids of the candidates, [P].
            rows: request of each candidate, [P].
            weights: weights of the events, [T].

        Returns:
            Sums [P] float64; 0 for a candidate without a value (code 0).

        """
        inverse, num_pairs, places = self._places(field, candidates, rows)
        sums = weights.new_zeros(num_pairs + 1).index_add(0, inverse, weights)
        return sums[places] * (places > 0)

    def _places(self, field: ItemField, candidates: Tensor, rows: Tensor) -> tuple[Tensor, int, Tensor]:
        """Return the pair of each event [T], the number of pairs V, and that of each candidate [P].

        Pairs count from 1; 0 is a pair without events, or without a value.
        """
        if field not in self.places:
            codes, candidate_codes = (cast(Tensor, field.of_items(ids)) for ids in (self.items.values, candidates))
            keys = self.row_ids() * field.size + codes
            pairs, inverse = torch.unique(keys, return_inverse=True)
            candidate_keys = rows * field.size + candidate_codes
            places = torch.searchsorted(pairs, candidate_keys)
            if len(pairs):
                is_equal = pairs[places.clamp(max=len(pairs) - 1)] == candidate_keys
                places = (places + 1) * (is_equal & (candidate_codes > 0))
            self.places[field] = (inverse + 1, len(pairs), places)
        return self.places[field]

    def _weights(self, weighting: Weighting) -> Tensor:
        if weighting.action:
            weights = self.of(Weighting(weighting.half_life))
            if self.actions is None:
                return torch.zeros_like(weights)
            return weights * (self.actions == weighting.action)
        if self.times is None or self.request_times is None:
            if weighting.half_life is None:  # without times there is no session
                return torch.zeros(len(self.items.values), dtype=torch.float64, device=self.items.offsets.device)
            last = self.items.offsets[1:][self.row_ids()] - 1
            ages = (last - torch.arange(len(last), device=last.device)).double()
            return torch.exp2(-ages / weighting.half_life)
        ages = self.request_times[self.row_ids()] - self.times
        if weighting.half_life is None:
            return (self._in_session(self.times) & (ages > 0)).double()
        return torch.exp2(-ages.clamp(min=0).double() / (weighting.half_life * DAY_MS)) * (ages > 0)

    def _in_session(self, times: Tensor) -> Tensor:
        """Return which events belong to the session that lasts up to the request, bool [T]."""
        assert self.request_times is not None
        if not len(times):
            return torch.zeros_like(times, dtype=torch.bool)
        rows = self.row_ids()
        next_times = torch.cat([times[1:], times[-1:]])
        last = self.items.offsets[1:][self.items.lengths > 0] - 1
        next_times[last] = self.request_times[rows[last]]
        is_break = (next_times - times > SESSION_GAP_MS).long()
        # An event is in the session if there is no break from it to the end of its row.
        before = torch.cat([is_break.new_zeros(1), is_break.cumsum(0)])
        return before[self.items.offsets[1:][rows]] == before[:-1]
