"""Kinds of fields: each turns one thing that is known of a request or a candidate into a code.

Shapes: B requests, P candidates of all of them, L history length, N items. Code 0 is what is missing or was not seen in
training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

import polars as pl
import torch
from torch import Tensor, nn

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import ACTION, ColumnEncoding
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.nn.fields.item_features import category_codes, category_lists

DAY_MS, HOUR_MS = 86_400_000, 3_600_000
FIRST_THURSDAY = 3  # 1970-01-01, counted from Monday
MOST = 40  # codes of a logarithmic scale: 1, 1.4, 2, 2.8 ... 10^6


@dataclass(frozen=True, eq=False)
class FieldInputs:
    """A batch of requests with candidates, and what several fields read of it."""

    batch: SequenceBatch
    max_history_length: int
    compared: dict[ItemField, Tensor] = field(default_factory=dict)

    @cached_property
    def items(self) -> Tensor:
        """The candidates [P]."""
        assert self.batch.candidates is not None, "requests need candidates"
        return self.batch.candidates.values

    @cached_property
    def rows(self) -> Tensor:
        """The request of each candidate [P]."""
        assert self.batch.candidates is not None, "requests need candidates"
        return self.batch.candidates.row_ids()

    @cached_property
    def recent(self) -> Jagged:
        """The last items of the histories."""
        return self.batch.items.last(self.max_history_length)

    @cached_property
    def history(self) -> Tensor:
        """The same, padded with 0 on the left [B, L]: the last event stands last."""
        return self.recent.to_padded(align="right")

    def event_column(self, name: str) -> Jagged | None:
        """A column of the latest events, rows as in `recent`; None if the requests do not carry it."""
        column = self.batch.actions if name == ACTION else self.batch.features.get(name)
        return None if column is None else column.last(self.max_history_length)

    def same(self, field: ItemField) -> Tensor:
        """bool [P, L]: does an event of the history share the candidate's value of the field?"""
        if field not in self.compared:
            held, wanted = field.of_items(self.history.flatten()), field.of_items(self.items)
            assert isinstance(held, Tensor)
            assert isinstance(wanted, Tensor)
            by_candidate = held.to(torch.int32).view(self.history.shape)[self.rows]
            self.compared[field] = (by_candidate == wanted.to(torch.int32)[:, None]) & (wanted > 0)[:, None]
        return self.compared[field]

    @cached_property
    def times(self) -> Tensor | None:
        """The time of each candidate's request [P], milliseconds."""
        return None if self.batch.request_times is None else self.batch.request_times[self.rows]


class Field(nn.Module):
    """One field. `of` says what it has a code for: each request, or each candidate; a bag has any number of codes."""

    of: ClassVar[Literal["request", "candidate"]] = "candidate"
    is_bag: ClassVar[bool] = False
    size: int  # codes 0 .. size - 1

    def fit(self, requests: SequenceBatch, log: Interactions) -> None:
        """Takes from training requests and events what codes depend on; most fields need nothing."""

    def forward(self, asked: FieldInputs) -> Tensor | Jagged:
        """Codes [B] or [P]; of a bag, as many rows."""
        raise AssertionError("each kind has its own")


class ItemField(Field):
    """A field that a candidate's item alone decides, whatever the request: it is known of history items too."""

    def of_items(self, item_ids: Tensor) -> Tensor | Jagged:
        """Codes of any items [n]."""
        raise AssertionError("each kind has its own")

    def forward(self, asked: FieldInputs) -> Tensor | Jagged:
        """Codes of the candidates."""
        return self.of_items(asked.items)


class ItemId(ItemField):
    """The item itself; items without a training event share code 0."""

    codes: Tensor

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.size = num_items + 1
        self.register_buffer("codes", torch.arange(num_items + 1))

    def fit(self, requests: SequenceBatch, log: Interactions) -> None:
        """Items of training events, and those that training requests show."""
        seen = torch.zeros(len(self.codes), dtype=torch.bool)
        seen[torch.from_numpy(log.item_ids).long()] = True
        if requests.candidates is not None:
            seen[requests.candidates.values] = True
        self.codes.copy_(torch.arange(len(seen)) * seen)

    def of_items(self, item_ids: Tensor) -> Tensor:
        """[n]."""
        return self.codes[item_ids]


class ItemCategory(ItemField):
    """A categorical column of the catalogue."""

    codes: Tensor

    def __init__(self, values: pl.Series) -> None:
        super().__init__()
        codes, known = category_codes(values)
        self.size = 1 + known
        self.register_buffer("codes", nn.functional.pad(codes, (1, 0)), persistent=False)

    def of_items(self, item_ids: Tensor) -> Tensor:
        """[n]."""
        return self.codes[item_ids]


class ItemList(ItemField):
    """A column of lists of the catalogue."""

    is_bag: ClassVar[bool] = True
    members: Tensor
    offsets: Tensor

    def __init__(self, values: pl.Series) -> None:
        super().__init__()
        lists, known = category_lists(values)
        self.size = 1 + known
        self.register_buffer("members", lists.values, persistent=False)
        self.register_buffer("offsets", lists.offsets, persistent=False)

    def of_items(self, item_ids: Tensor) -> Jagged:
        """Rows of codes, n of them."""
        return Jagged(self.members, self.offsets).select(item_ids)


class ItemNumber(ItemField):
    """A numeric column of the catalogue, by quantiles of the catalogue."""

    codes: Tensor

    def __init__(self, values: pl.Series, buckets: int) -> None:
        super().__init__()
        numbers = torch.tensor([float("nan"), *values.cast(pl.Float64).fill_null(float("nan")).to_list()])
        self.size = buckets + 1
        self.register_buffer("codes", bucket_codes(numbers, quantiles(numbers, buckets)), persistent=False)

    def of_items(self, item_ids: Tensor) -> Tensor:
        """[n]."""
        return self.codes[item_ids]


class ItemAge(Field):
    """Time since an item was released, at the time of the request, on a logarithmic scale of hours."""

    def __init__(self, released_ms: Tensor) -> None:
        super().__init__()
        self.size = MOST
        self.register_buffer("released", nn.functional.pad(released_ms, (1, 0)), persistent=False)

    def forward(self, asked: FieldInputs) -> Tensor:
        """[P]; 0 without a release or a time."""
        released: Tensor = self.released[asked.items]  # type: ignore[index]
        if asked.times is None:
            return torch.zeros_like(released)
        hours = (asked.times - released).clamp(min=0) / HOUR_MS
        return logarithmic(hours + 1) * (released != 0)


class RequestCategory(Field):
    """A categorical column of the requests; what training did not see is missing."""

    of: ClassVar[Literal["request", "candidate"]] = "request"
    codes: Tensor

    def __init__(self, name: str, column: ColumnEncoding) -> None:
        super().__init__()
        self.name, self.size = name, column.num_codes
        self.register_buffer("codes", torch.arange(self.size))

    def fit(self, requests: SequenceBatch, log: Interactions) -> None:
        """What training has seen."""
        if self.name in requests.context:
            seen = torch.bincount(_values(requests.context[self.name]), minlength=self.size) > 0
            self.codes.copy_(torch.arange(self.size) * seen)

    def forward(self, asked: FieldInputs) -> Tensor | Jagged:
        """[B]."""
        given = asked.batch.context.get(self.name)
        if given is None:
            return torch.zeros(asked.batch.num_requests, dtype=torch.int64, device=self.codes.device)
        out: Tensor = self.codes[given]
        return out


class RequestList(RequestCategory):
    """A column of lists of the requests."""

    is_bag: ClassVar[bool] = True

    def forward(self, asked: FieldInputs) -> Jagged:
        """B rows."""
        given = asked.batch.context.get(self.name)
        if given is None:
            return Jagged.from_lengths(asked.items[:0], torch.zeros_like(asked.batch.items.lengths))
        return given.with_values(self.codes[given.values])  # type: ignore[no-any-return]


class RequestNumber(Field):
    """A numeric column of the requests, by quantiles of training."""

    of: ClassVar[Literal["request", "candidate"]] = "request"
    borders: Tensor

    def __init__(self, name: str, buckets: int) -> None:
        super().__init__()
        self.name, self.size = name, buckets + 1
        self.register_buffer("borders", torch.zeros(buckets - 1))

    def fit(self, requests: SequenceBatch, log: Interactions) -> None:
        """The quantiles."""
        if self.name in requests.context:
            self.borders.copy_(quantiles(requests.context[self.name], self.size - 1))

    def forward(self, asked: FieldInputs) -> Tensor:
        """[B]."""
        given = asked.batch.context.get(self.name)
        if given is None:
            return torch.zeros(asked.batch.num_requests, dtype=torch.int64, device=self.borders.device)
        return bucket_codes(given.float(), self.borders)


class RequestAge(Field):
    """Time from a date of the requests (when a user registered) to the request, logarithmic in hours."""

    of: ClassVar[Literal["request", "candidate"]] = "request"

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.size = name, MOST

    def forward(self, asked: FieldInputs) -> Tensor:
        """[B]."""
        given, now = asked.batch.context.get(self.name), asked.batch.request_times
        if given is None or now is None:
            return torch.zeros_like(asked.batch.items.lengths)
        hours: Tensor = (now - given).clamp(min=0) / HOUR_MS  # NaN without a date
        return logarithmic(hours.nan_to_num(-1) + 1)


class RequestTime(Field):
    """Hour of the day or day of the week of the request (UTC)."""

    of: ClassVar[Literal["request", "candidate"]] = "request"

    def __init__(self, what: Literal["hour", "weekday"]) -> None:
        super().__init__()
        self.what = what
        self.size = 25 if what == "hour" else 8

    def forward(self, asked: FieldInputs) -> Tensor:
        """[B]."""
        now = asked.batch.request_times
        if now is None:
            return torch.zeros_like(asked.batch.items.lengths)
        return 1 + (now // HOUR_MS % 24 if self.what == "hour" else (now // DAY_MS + FIRST_THURSDAY) % 7)


class HistoryLength(Field):
    """How many of the latest events there are, logarithmic; those before them are never read."""

    of: ClassVar[Literal["request", "candidate"]] = "request"
    size = MOST

    def forward(self, asked: FieldInputs) -> Tensor:
        """[B]."""
        return logarithmic(asked.recent.lengths.double())


class Reading(Field):
    """A field that reads items by a field of theirs."""

    def __init__(self, field: ItemField, size: int = MOST) -> None:
        super().__init__()
        self.field, self.size = field, size

    def fit(self, requests: SequenceBatch, log: Interactions) -> None:
        """What it reads by."""
        self.field.fit(requests, log)


class HistoryBag(Reading):
    """The latest items of the history, by an item field: their ids, their categories."""

    of: ClassVar[Literal["request", "candidate"]] = "request"
    is_bag: ClassVar[bool] = True

    def __init__(self, field: ItemField) -> None:
        super().__init__(field, field.size)

    def forward(self, asked: FieldInputs) -> Jagged:
        """B rows."""
        codes = self.field.of_items(asked.recent.values)
        assert isinstance(codes, Tensor)
        return asked.recent.with_values(codes)


class HistoryMatchCount(Reading):
    """How many of the latest events share the candidate's value of an item field: 0, 1, 2, 3 - 4, 5 - 8, ..."""

    def forward(self, asked: FieldInputs) -> Tensor:
        """[P]."""
        return logarithmic(asked.same(self.field).sum(1).double())


class EventsSinceMatch(Reading):
    """How many events ago the candidate's value of an item field stood in the history; 0: not among the latest."""

    def forward(self, asked: FieldInputs) -> Tensor:
        """[P]."""
        same = asked.same(self.field)
        if not same.shape[1]:
            return asked.items * 0
        last = same.flip(1).to(torch.uint8).argmax(1)  # the first of equal ones
        return logarithmic(last.double() + 1) * same.any(1)


class CrossedWithLast(Reading):
    """The last event's value of an item field crossed with the candidate's, hashed where there are too many pairs."""

    def __init__(self, field: ItemField, buckets: int) -> None:
        exact = field.size**2 < buckets
        super().__init__(field, 1 + (field.size**2 if exact else buckets))
        self.exact = exact

    def forward(self, asked: FieldInputs) -> Tensor:
        """[P]."""
        field, recent = self.field, asked.recent
        last = recent.values.new_zeros(recent.num_rows)
        full = recent.lengths > 0
        last[full] = recent.values[recent.offsets[1:][full] - 1]
        before, now = field.of_items(last)[asked.rows], field.of_items(asked.items)  # type: ignore[index]
        assert isinstance(before, Tensor)
        assert isinstance(now, Tensor)
        mixed = before * field.size + now
        if not self.exact:
            mixed = (mixed * 0x9E3779B1 >> 8) % (self.size - 1)
        return (1 + mixed) * ((before > 0) & (now > 0))


class CandidateFeature(Field):
    """A number that comes with the candidates (their rank in a channel), logarithmic; `default` where none comes."""

    def __init__(self, name: str, *, default: float = 0.0) -> None:
        super().__init__()
        self.name, self.default, self.size = name, default, MOST

    def forward(self, asked: FieldInputs) -> Tensor:
        """[P]."""
        given = asked.batch.candidate_features.get(self.name)
        values = torch.full(asked.items.shape, self.default) if given is None else given.values
        return logarithmic(values.to(asked.items.device).double())


def quantiles(values: Tensor, buckets: int) -> Tensor:
    """The `buckets` - 1 borders of equally full buckets, NaN left out; 0 where there is no value."""
    known = values[values.isfinite()].double().sort().values
    if not len(known):
        return torch.zeros(buckets - 1)
    places = torch.arange(1, buckets) * len(known) // buckets
    return known[places].float()


def bucket_codes(values: Tensor, borders: Tensor) -> Tensor:
    """1 + the number of borders at or below each value, 0 for NaN."""
    return (1 + torch.bucketize(values.float(), borders, right=True)) * values.isfinite()


def logarithmic(values: Tensor) -> Tensor:
    """1 + the whole part of 2 log2 of each value, at most MOST - 1; 0 below 1."""
    steps = (2 * values.clamp(min=1).log2() + 1e-9).long() + 1
    return steps.clamp(max=MOST - 1) * (values >= 1)


def _values(column: Tensor | Jagged) -> Tensor:
    return column.values if isinstance(column, Jagged) else column
