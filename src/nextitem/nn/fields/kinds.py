"""Kinds of fields: each encodes one property of a request or a candidate as integer codes.

Shapes: B requests, P candidates of all requests, L history length, N items. Code 0: missing, or unseen in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal, cast

import polars as pl
import torch
from torch import Tensor, nn

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import ACTION, ColumnEncoding
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.nn.fields.event_weights import EventWeights
from nextitem.nn.fields.history_matches import HistoryMatches, history_matches
from nextitem.nn.fields.item_features import category_codes, category_lists, category_values, value_keys
from nextitem.nn.tables.id_hash import hash_ids

DAY_MS, HOUR_MS = 86_400_000, 3_600_000
FIRST_THURSDAY = 3  # weekday of 1970-01-01, a Thursday; Monday is 0
NUM_LOG_CODES = 40  # codes of a logarithmic scale: 1, 1.4, 2, 2.8 ... 10^6


@dataclass(frozen=True, eq=False)
class FieldInputs:
    """Batch of requests with candidates, and cached values that several fields read from it.

    Attributes:
        max_history_length: number of latest events of each history that fields read.
        crossed: item fields of which candidates are compared with the events of the history.
        codes: results of `item_codes`, by item field.
        events: weights of events before the requests that several fields read, by the kind of events.

    """

    batch: SequenceBatch
    max_history_length: int
    crossed: Sequence[ItemField] = ()
    codes: dict[ItemField, Tensor | Jagged] = field(default_factory=dict)
    events: dict[str, EventWeights] = field(default_factory=dict)

    @cached_property
    def items(self) -> Tensor:
        """Item ids of the candidates [P]."""
        assert self.batch.candidates is not None, "requests need candidates"
        return self.batch.candidates.values

    @cached_property
    def rows(self) -> Tensor:
        """Index of the request of each candidate [P]."""
        assert self.batch.candidates is not None, "requests need candidates"
        return self.batch.candidates.row_ids()

    @cached_property
    def recent(self) -> Jagged:
        """Latest `max_history_length` items of each history."""
        return self.batch.items.last(self.max_history_length)

    @cached_property
    def last_items(self) -> Tensor:
        """Last item of each history [B]; 0 if the history is empty."""
        items = torch.nn.functional.pad(self.recent.values, (1, 0))
        return items[self.recent.offsets[1:] * (self.recent.lengths > 0)]

    def event_column(self, name: str) -> Jagged | None:
        """Return a column of the latest events, rows as in `recent`; None if the requests have no such column."""
        column = self.batch.actions if name == ACTION else self.batch.features.get(name)
        return None if column is None else column.last(self.max_history_length)

    def item_codes(self, field: ItemField) -> Tensor | Jagged:
        """Return the codes of the candidates in an item field, [P]; for a bag, a Jagged with P rows."""
        if field not in self.codes:
            self.codes[field] = field.of_items(self.items)
        return self.codes[field]

    @cached_property
    def matches(self) -> HistoryMatches:
        """Which history events share a candidate's value of the crossed fields."""
        return history_matches(
            self.recent,
            [cast(Tensor, field.of_items(self.recent.values)) for field in self.crossed],
            [cast(Tensor, self.item_codes(field)) for field in self.crossed],
            self.rows,
            num_codes=[field.size for field in self.crossed],
        )

    @cached_property
    def match_counts(self) -> Tensor:
        """Number of events of each group of `matches`, as a code."""
        return logarithmic(self.matches.counts.double())

    @cached_property
    def events_since_match(self) -> Tensor:
        """Number of events from the last one of each group of `matches`, as a code."""
        return logarithmic(self.matches.since.double())

    @cached_property
    def times(self) -> Tensor | None:
        """Time of each candidate's request [P] in milliseconds, or None if requests have no times."""
        return None if self.batch.request_times is None else self.batch.request_times[self.rows]


class Field(nn.Module):
    """One property of requests or candidates, encoded as integer codes.

    Attributes:
        scope: what has a code: each request, or each candidate.
        is_bag: whether there can be any number of codes for each request or candidate, instead of exactly one.
        size: number of codes; codes are 0 .. size - 1.

    """

    scope: ClassVar[Literal["request", "candidate"]] = "candidate"
    is_bag: ClassVar[bool] = False
    size: int

    def fit(self, requests: SequenceBatch, log: Interactions) -> None:
        """Learn what the codes depend on from training requests and events; by default, nothing."""

    def code_keys(self) -> Tensor:
        """Return a key of each code [size], int64, that means the same if the catalogue grows; by default, the code."""
        return torch.arange(self.size)

    def forward(self, inputs: FieldInputs) -> Tensor | Jagged:
        """Return codes [B] or [P]; for a bag, a Jagged with B or P rows."""
        raise AssertionError("each kind of field implements forward")


class ItemField(Field):
    """Field that depends on the item alone, not on the request, and so is defined for history items too."""

    def of_items(self, item_ids: Tensor) -> Tensor | Jagged:
        """Return codes of any items [n]; for a bag, a Jagged with n rows."""
        raise AssertionError("each kind of item field implements of_items")

    def forward(self, inputs: FieldInputs) -> Tensor | Jagged:
        """Return the codes of the candidates, [P] or P rows."""
        return inputs.item_codes(self)


class ItemId(ItemField):
    """Id of the item; items unseen in training share code 0."""

    codes: Tensor

    def __init__(self, ids: pl.Series) -> None:
        super().__init__()
        self.ids, self.size = ids, len(ids) + 1
        self.register_buffer("codes", torch.arange(self.size))

    def code_keys(self) -> Tensor:
        """Return the keys of the external ids, 0 for code 0."""
        return value_keys(self.ids)

    def fit(self, requests: SequenceBatch, log: Interactions) -> None:
        """Give codes to the items of training events and to the candidates of training requests."""
        is_seen = torch.zeros(len(self.codes), dtype=torch.bool)
        is_seen[torch.from_numpy(log.item_ids).long()] = True
        if requests.candidates is not None:
            is_seen[requests.candidates.values] = True
        self.codes.copy_(torch.arange(len(is_seen)) * is_seen)

    def of_items(self, item_ids: Tensor) -> Tensor:
        """Return the codes of any items [n]."""
        return self.codes.index_select(0, item_ids)


class ItemCategory(ItemField):
    """Categorical column of the catalogue."""

    codes: Tensor

    def __init__(self, values: pl.Series) -> None:
        super().__init__()
        codes, num_values = category_codes(values)
        self.values, self.size = values, 1 + num_values
        self.register_buffer("codes", nn.functional.pad(codes, (1, 0)), persistent=False)

    def code_keys(self) -> Tensor:
        """Return the keys of the values as text, 0 for code 0."""
        return value_keys(category_values(self.values))

    def of_items(self, item_ids: Tensor) -> Tensor:
        """Return the codes of any items [n]."""
        return self.codes.index_select(0, item_ids)


class ItemList(ItemField):
    """Column of the catalogue whose values are lists."""

    is_bag: ClassVar[bool] = True
    members: Tensor
    offsets: Tensor

    def __init__(self, values: pl.Series) -> None:
        super().__init__()
        lists, num_values = category_lists(values)
        self.values, self.size = values, 1 + num_values
        self.register_buffer("members", lists.values, persistent=False)
        self.register_buffer("offsets", lists.offsets, persistent=False)

    def code_keys(self) -> Tensor:
        """Return the keys of the members as text, 0 for code 0."""
        return value_keys(category_values(self.values.cast(pl.List(pl.String)).explode()))

    def of_items(self, item_ids: Tensor) -> Jagged:
        """Return the codes of any items [n], one row for each item."""
        return Jagged(self.members, self.offsets).select(item_ids)


class ItemNumber(ItemField):
    """Numeric column of the catalogue, in buckets between its quantiles over the catalogue."""

    codes: Tensor

    def __init__(self, values: pl.Series, buckets: int) -> None:
        super().__init__()
        numbers = torch.tensor([float("nan"), *values.cast(pl.Float64).fill_null(float("nan")).to_list()])
        self.size = buckets + 1
        self.register_buffer("codes", bucket_codes(numbers, quantiles(numbers, buckets)), persistent=False)

    def of_items(self, item_ids: Tensor) -> Tensor:
        """Return the codes of any items [n]."""
        return self.codes.index_select(0, item_ids)


class ItemAge(Field):
    """Time from the release of an item to the request, on a logarithmic scale of hours."""

    def __init__(self, released_ms: Tensor) -> None:
        super().__init__()
        self.size = NUM_LOG_CODES
        self.register_buffer("released", nn.functional.pad(released_ms, (1, 0)), persistent=False)

    def forward(self, inputs: FieldInputs) -> Tensor:
        """Return codes [P]; 0 for items without a release time and requests without a time."""
        released: Tensor = self.released[inputs.items]  # type: ignore[index]
        if inputs.times is None:
            return torch.zeros_like(released)
        hours = (inputs.times - released).clamp(min=0) / HOUR_MS
        return logarithmic(hours + 1) * (released != 0)


class RequestCategory(Field):
    """Categorical column of the requests; values that training did not see count as missing."""

    scope: ClassVar[Literal["request", "candidate"]] = "request"
    codes: Tensor

    def __init__(self, name: str, column: ColumnEncoding) -> None:
        super().__init__()
        self.name, self.column, self.size = name, column, column.num_codes
        self.register_buffer("codes", torch.arange(self.size))

    def code_keys(self) -> Tensor:
        """Return the keys of the values as text, 0 for code 0; codes if values are hashed."""
        return super().code_keys() if self.column.values is None else value_keys(self.column.values)

    def fit(self, requests: SequenceBatch, log: Interactions) -> None:
        """Give codes to the values that training requests contain."""
        if self.name in requests.context:
            is_seen = torch.bincount(_values(requests.context[self.name]), minlength=self.size) > 0
            self.codes.copy_(torch.arange(self.size) * is_seen)

    def forward(self, inputs: FieldInputs) -> Tensor | Jagged:
        """Return codes [B]; 0 if the requests have no such column."""
        column = inputs.batch.context.get(self.name)
        if column is None:
            return torch.zeros(inputs.batch.num_requests, dtype=torch.int64, device=self.codes.device)
        out: Tensor = self.codes[column]
        return out


class RequestList(RequestCategory):
    """Column of the requests whose values are lists."""

    is_bag: ClassVar[bool] = True

    def forward(self, inputs: FieldInputs) -> Jagged:
        """Return B rows of codes; empty rows if the requests have no such column."""
        column = inputs.batch.context.get(self.name)
        if column is None:
            return Jagged.from_lengths(inputs.items[:0], torch.zeros_like(inputs.batch.items.lengths))
        return column.with_values(self.codes[column.values])  # type: ignore[no-any-return]


class RequestNumber(Field):
    """Numeric column of the requests, in buckets between its quantiles over training requests."""

    scope: ClassVar[Literal["request", "candidate"]] = "request"
    borders: Tensor

    def __init__(self, name: str, buckets: int) -> None:
        super().__init__()
        self.name, self.size = name, buckets + 1
        self.register_buffer("borders", torch.zeros(buckets - 1))

    def fit(self, requests: SequenceBatch, log: Interactions) -> None:
        """Compute the quantiles of the column over training requests."""
        if self.name in requests.context and not bool(self.borders.any()):  # borders stay when a model learns on
            self.borders.copy_(quantiles(requests.context[self.name], self.size - 1))

    def forward(self, inputs: FieldInputs) -> Tensor:
        """Return codes [B]; 0 if the requests have no such column, or no value in it."""
        column = inputs.batch.context.get(self.name)
        if column is None:
            return torch.zeros(inputs.batch.num_requests, dtype=torch.int64, device=self.borders.device)
        return bucket_codes(column.float(), self.borders)


class RequestAge(Field):
    """Time from a date column of the requests to the request, on a logarithmic scale of hours.

    For example the time since the user registered.
    """

    scope: ClassVar[Literal["request", "candidate"]] = "request"

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.size = name, NUM_LOG_CODES

    def forward(self, inputs: FieldInputs) -> Tensor:
        """Return codes [B]; 0 for requests without a date or a time."""
        column, now = inputs.batch.context.get(self.name), inputs.batch.request_times
        if column is None or now is None:
            return torch.zeros_like(inputs.batch.items.lengths)
        hours: Tensor = (now - column).clamp(min=0) / HOUR_MS  # NaN without a date
        return logarithmic(hours.nan_to_num(-1) + 1)


class RequestTime(Field):
    """Hour of the day or day of the week of the request (UTC)."""

    scope: ClassVar[Literal["request", "candidate"]] = "request"

    def __init__(self, unit: Literal["hour", "weekday"]) -> None:
        super().__init__()
        self.unit = unit
        self.size = 25 if unit == "hour" else 8

    def forward(self, inputs: FieldInputs) -> Tensor:
        """Return codes [B]; 0 if requests have no times."""
        now = inputs.batch.request_times
        if now is None:
            return torch.zeros_like(inputs.batch.items.lengths)
        return 1 + (now // HOUR_MS % 24 if self.unit == "hour" else (now // DAY_MS + FIRST_THURSDAY) % 7)


class HistoryLength(Field):
    """Number of latest events in the history, on a logarithmic scale; older events are never read."""

    scope: ClassVar[Literal["request", "candidate"]] = "request"
    size = NUM_LOG_CODES

    def forward(self, inputs: FieldInputs) -> Tensor:
        """Return codes [B]."""
        return logarithmic(inputs.recent.lengths.double())


class ItemFieldReader(Field):
    """Field that is computed from an item field of candidates, of history items, or of both."""

    def __init__(self, field: ItemField, size: int = NUM_LOG_CODES) -> None:
        super().__init__()
        self.field, self.size = field, size

    def fit(self, requests: SequenceBatch, log: Interactions) -> None:
        """Fit the item field that it reads."""
        self.field.fit(requests, log)


class HistoryBag(ItemFieldReader):
    """Bag of the codes of an item field (ids, categories) for the latest items of the history."""

    scope: ClassVar[Literal["request", "candidate"]] = "request"
    is_bag: ClassVar[bool] = True

    def __init__(self, field: ItemField) -> None:
        super().__init__(field, field.size)

    def code_keys(self) -> Tensor:
        """Return the keys of the item field."""
        return self.field.code_keys()

    def forward(self, inputs: FieldInputs) -> Jagged:
        """Return B rows of codes."""
        codes = self.field.of_items(inputs.recent.values)
        assert isinstance(codes, Tensor)
        return inputs.recent.with_values(codes)


class HistoryMatchCount(ItemFieldReader):
    """Number of latest events that share the candidate's value of an item field: 0, 1, 2, 3 - 4, 5 - 8, ..."""

    def forward(self, inputs: FieldInputs) -> Tensor:
        """Return codes [P]."""
        return inputs.matches.of_candidates(inputs.match_counts, inputs.crossed.index(self.field))


class EventsSinceMatch(ItemFieldReader):
    """Number of events since the candidate's value of an item field was last in the history.

    Code 0: none of the latest events has it.
    """

    def forward(self, inputs: FieldInputs) -> Tensor:
        """Return codes [P]."""
        return inputs.matches.of_candidates(inputs.events_since_match, inputs.crossed.index(self.field))


class CrossedWithLast(ItemFieldReader):
    """Pair of the last event's value of an item field and the candidate's value.

    If there are too many pairs, they are hashed into `buckets`, by the size of the field when it was first built.
    """

    base: Tensor

    def __init__(self, field: ItemField, buckets: int) -> None:
        is_exact = field.size**2 < buckets
        super().__init__(field, 1 + (field.size**2 if is_exact else buckets))
        self.is_exact = is_exact
        if not is_exact:
            self.register_buffer("base", torch.tensor(field.size))

    def code_keys(self) -> Tensor:
        """Return the keys of the pairs, 0 for code 0.

        Hashed pairs of categories get other keys if the categories change, as codes then mean other ones.
        """
        keys = self.field.code_keys()
        if self.is_exact:
            pairs = hash_ids(hash_ids(keys, 1)[:, None] + keys).flatten()
            return nn.functional.pad(pairs, (1, 0))
        version = 0 if isinstance(self.field, ItemId) else int(hash_ids(keys).sum())
        return nn.functional.pad(hash_ids(torch.arange(1, self.size) + version, 2), (1, 0))

    def forward(self, inputs: FieldInputs) -> Tensor:
        """Return codes [P]; 0 if either value is missing."""
        field = self.field
        last_codes, codes = field.of_items(inputs.last_items), inputs.item_codes(field)
        assert isinstance(last_codes, Tensor)
        assert isinstance(codes, Tensor)
        last_codes = last_codes.index_select(0, inputs.rows)
        pairs = last_codes * (field.size if self.is_exact else self.base) + codes
        if not self.is_exact:
            pairs = (pairs * 0x9E3779B1 >> 8) % (self.size - 1)
        return (1 + pairs) * ((last_codes > 0) & (codes > 0))


class CandidateFeature(Field):
    """Numeric feature that comes with the candidates (such as their rank in a channel), on a logarithmic scale.

    `default` is the value of candidates of requests that lack the feature.
    """

    def __init__(self, name: str, *, default: float = 0.0) -> None:
        super().__init__()
        self.name, self.default, self.size = name, default, NUM_LOG_CODES

    def forward(self, inputs: FieldInputs) -> Tensor:
        """Return codes [P]."""
        column = inputs.batch.candidate_features.get(self.name)
        values = torch.full(inputs.items.shape, self.default) if column is None else column.values
        return logarithmic(values.to(inputs.items.device).double())


def quantiles(values: Tensor, buckets: int) -> Tensor:
    """Return the `buckets` - 1 borders between equally full buckets of `values`, NaN ignored.

    All borders are 0 if there is no value.
    """
    finite = values[values.isfinite()].double().sort().values
    if not len(finite):
        return torch.zeros(buckets - 1)
    positions = torch.arange(1, buckets) * len(finite) // buckets
    return finite[positions].float()


def bucket_codes(values: Tensor, borders: Tensor) -> Tensor:
    """Return 1 + the number of borders at or below each value; 0 for NaN."""
    return (1 + torch.bucketize(values.float(), borders, right=True)) * values.isfinite()


def logarithmic(values: Tensor) -> Tensor:
    """Return 1 + the whole part of 2 log2 of each value, at most NUM_LOG_CODES - 1; 0 for values below 1."""
    steps = values.clamp(min=1).log2_().mul_(2).add_(1e-9).long()
    return steps.add_(1).clamp_(max=NUM_LOG_CODES - 1).mul_(values >= 1)


def _values(column: Tensor | Jagged) -> Tensor:
    return column.values if isinstance(column, Jagged) else column
