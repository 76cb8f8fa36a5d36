"""The towers of two-tower models over padded tensors, with the same weights, for ONNX.

Shapes: B requests, P events that are read, F fields, E width of a field's vector, D width of the towers' vectors, n
items, C width of content.
"""

from __future__ import annotations

import re
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core.catalog import ACTION, Catalog
from nextitem.models.two_tower import TwoTower
from nextitem.nn.attention.incremental import Window
from nextitem.nn.fields import kinds
from nextitem.nn.fields.event_kinds import EventBag, EventMean
from nextitem.nn.fields.fields import FieldVectors
from nextitem.nn.fields.item_features import category_codes
from nextitem.nn.fields.towers import MASKED_LOGIT
from nextitem.pipeline.exporting.history_modules import (
    ACTIONS,
    HistoryModule,
    bucket_borders,
    last_of,
    latest_events,
    request_times_input,
    timestamps_input,
)
from nextitem.pipeline.exporting.onnx_files import Input

CODE = "code of the value (requests.json), from 1; 0: missing or unknown"
CODES = "codes of the values (requests.json), then -1; a row of -1: no value"
NUMBER, DATE = "the value; NaN: missing", "milliseconds since 1970; NaN: missing"
EVENT_CODES = "code of each event's value (events.json), from 1; 0: missing, and after the last event"
EVENT_NUMBERS = "value of each event; NaN: missing, and after the last event"


class UserTowerModule(HistoryModule):
    """The vector of a request, of length 1 / temperature."""

    ages: Tensor
    dates: Tensor
    steps: Tensor

    def __init__(self, model: TwoTower) -> None:
        super().__init__(model)
        tower = model.users
        self.window, self.temperature = Window(model.config.max_history_length), model.config.temperature
        self.weigh, self.by_place, self.by_age, self.layers = tower.weigh, tower.by_place, tower.by_age, tower.layers
        self.events = nn.Parameter(model._cached_items()[1].detach(), requires_grad=False)
        self.table, self.fields = tower.table.table, tower.fields.parts
        self.starts = tower.fields.starts.tolist()
        self.inputs += (timestamps_input(), request_times_input())
        for part in self.fields:
            entry = _input_of(part)
            if entry is not None and entry.name not in [each.name for each in self.inputs]:
                self.inputs += (entry,)
        # Exact borders of the codes: of times by milliseconds, of lengths by events.
        self.register_buffer("ages", bucket_borders(_age_codes, kinds.NUM_LOG_CODES)[1:-1])
        self.register_buffer("dates", bucket_borders(_date_codes, kinds.NUM_LOG_CODES)[1:-1])
        self.register_buffer("steps", bucket_borders(_length_codes, kinds.NUM_LOG_CODES)[1:-1])

    def forward(self, *values: Tensor) -> Tensor:
        """Return the vectors of the requests, [B, D]."""
        columns = {each.name: value for each, value in zip(self.inputs, values, strict=True)}
        names = [each.name for each in self.inputs if "length" in each.shape and each.name != "items"]
        lengths, columns["items"], *read = latest_events(self.window, columns["items"], *(columns[n] for n in names))
        columns |= dict(zip(names, read, strict=True))
        single, bags = [], []
        for start, part in zip(self.starts, self.fields, strict=False):
            codes = self._codes(cast(kinds.Field, part), columns, lengths)
            if isinstance(codes, tuple):
                bags.append(_mean_vectors(self.table, codes[0] + start, codes[1]))
            else:
                single.append(self.table(codes + start))
        history = self._history(columns, lengths)
        return F.normalize(self.layers(torch.cat([*single, *bags, history], dim=1)), dim=1) / self.temperature

    def _history(self, columns: dict[str, Tensor], lengths: Tensor) -> Tensor:
        """Return the weighted sums of the events, and the last event, [B, (H + 1) D]."""
        places = torch.arange(columns["items"].shape[1], device=lengths.device)
        num_later = lengths[:, None] - 1 - places
        ages = (columns["request_times"][:, None] - columns["timestamps"]).clamp(min=0)
        has_times = (columns["request_times"] > 0)[:, None]
        age_codes = (1 + (ages[..., None] >= self.ages[1:]).sum(2)) * has_times
        events_BPD = F.embedding(columns["items"], self.events)
        logits = self.weigh(events_BPD) + self.by_place[num_later.clamp(min=0)] + self.by_age(age_codes)
        weights = logits.masked_fill((num_later < 0)[..., None], MASKED_LOGIT).softmax(1)
        pooled = (weights.transpose(1, 2) @ events_BPD).flatten(1)
        return torch.cat([pooled, last_of(events_BPD, lengths)], dim=1)

    def _codes(self, part: kinds.Field, columns: dict[str, Tensor], lengths: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the codes of a field of requests [B], or of a bag [B, members] with whether each is a member."""
        now = columns["request_times"]
        is_event = torch.arange(columns["items"].shape[1], device=now.device) < lengths[:, None]
        if isinstance(part, kinds.RequestTime):
            hour, day = now // kinds.HOUR_MS % 24, (now // kinds.DAY_MS + kinds.FIRST_THURSDAY) % 7
            return (1 + (hour if part.unit == "hour" else day)) * (now > 0)
        if isinstance(part, kinds.HistoryLength):
            return (lengths[:, None] >= self.steps).sum(1)
        if isinstance(part, kinds.HistoryBag):
            return cast(Tensor, part.field.codes)[columns["items"]], is_event
        if isinstance(part, EventBag):
            return columns[_column_name(part)], is_event
        if isinstance(part, EventMean):
            column = columns[_column_name(part)].double()
            has_value = (column.abs() < torch.inf) & is_event
            total = torch.where(has_value, column, 0.0).sum(1)
            return _bucket_codes((total / has_value.sum(1)).float(), part.borders)
        assert isinstance(part, kinds.RequestCategory | kinds.RequestNumber | kinds.RequestAge), part
        column = columns[part.name]
        if isinstance(part, kinds.RequestList):
            return part.codes[column.clamp(min=0)], column >= 0
        if isinstance(part, kinds.RequestCategory):
            return part.codes[column]
        if isinstance(part, kinds.RequestNumber):
            return _bucket_codes(column, part.borders)
        is_known = ~column.isnan() & (now > 0)
        age = (now - torch.where(is_known, column, 0.0).long()).clamp(min=0)
        return (1 + (age[:, None] >= self.dates[1:]).sum(1)) * is_known


class ItemTowerModule(nn.Module):
    """The vector of an item from the codes of its fields, so that items which training has not seen get one, too.

    Attributes:
        inputs: what `forward` takes: a code, or a list of codes, for each field, and content vectors.
        encodings: for each field, how values become codes; for manifest.json.

    """

    def __init__(self, model: TwoTower) -> None:
        super().__init__()
        tower = model.items
        self.table, self.layers, self.content = tower.table.table, tower.layers, tower.content
        entries = [_item_entry(name, part, model.catalog) for name, part in _item_fields(tower.table)]
        self.starts = [start for start, _ in tower.table.fields[0].items()]
        self.inputs = tuple(entry for entry, _ in entries)
        self.encodings = {entry.name: encoding for entry, encoding in entries}
        if self.content is not None:
            shape = ("items", self.content.in_features)
            self.inputs += (Input("content", "float32", shape, "content vectors of the items"),)

    def forward(self, *values: Tensor) -> Tensor:
        """Return the vectors of items, of length 1, [n, D]."""
        single, bags = [], []
        for codes, start in zip(values, self.starts, strict=False):
            if codes.dim() == 2:
                bags.append(_mean_vectors(self.table, codes.clamp(min=0) + start, codes >= 0))
            else:
                single.append(self.table(codes + start))
        content = [] if self.content is None else [self.content(values[-1])]
        return F.normalize(self.layers(torch.cat([*single, *bags, *content], dim=1)), dim=1)

    def codes_of(self, model: TwoTower, items: Tensor) -> list[Tensor]:
        """Return the inputs for items of the catalogue, by their numbers [n]."""
        values = []
        for _, part in _item_fields(model.items.table):
            codes = part.of_items(items)
            values.append(codes if isinstance(codes, Tensor) else codes.to_padded(fill=-1))
        return values if self.content is None else [*values, cast(Tensor, model.items.vectors)[items]]


def _item_fields(table: FieldVectors) -> list[tuple[str, kinds.ItemField]]:
    """Return the fields of items with their names, in the order of their vectors."""
    fields = table.fields[0]
    parts = [cast(kinds.Field, part) for part in fields.parts]
    return [(name, part) for name, part in zip(fields.names, parts, strict=True) if isinstance(part, kinds.ItemField)]


def _item_entry(name: str, part: kinds.ItemField, catalog: Catalog) -> tuple[Input, dict[str, Any]]:
    """Return the input of a field of items, and how its values become codes."""
    column = name.removeprefix("item.")
    if isinstance(part, kinds.ItemId):
        meaning = "number of an item that has training events; 0 for any other item"
        return Input(name, "int64", ("items",), meaning, high=part.size), {"kind": "number"}
    if isinstance(part, kinds.ItemNumber):
        numbers = torch.tensor(
            [float("nan"), *catalog.table[column].cast(float).fill_null(float("nan")).to_list()], dtype=torch.float32
        )
        borders = kinds.quantiles(numbers, part.size - 1).tolist()
        meaning = "1 + number of borders at or below the value; 0: missing"
        return Input(name, "int64", ("items",), meaning, high=part.size), {"kind": "borders", "borders": borders}
    values = catalog.table[column]
    is_list = isinstance(part, kinds.ItemList)
    texts = (values.explode() if is_list else values).cast(str)
    codes, _ = category_codes(texts)
    ordered = sorted(set(zip(codes.tolist(), texts.to_list(), strict=True)) - {(0, None)})
    encoding = {"kind": "values", "values": [text for _, text in ordered]}
    if is_list:
        meaning = "codes of the members, then -1; 0 alone: no member"
        return Input(name, "int64", ("items", "members"), meaning, high=part.size), encoding
    return Input(name, "int64", ("items",), "1 + place among the values; 0: missing", high=part.size), encoding


def _input_of(part: nn.Module) -> Input | None:
    """Return the input that a field of requests reads besides histories and times, or None."""
    if isinstance(part, EventBag):
        meaning = ACTIONS if part.name == ACTION else EVENT_CODES
        return Input(_column_name(part), "int64", ("batch", "length"), meaning, high=part.size)
    if isinstance(part, EventMean):
        return Input(_column_name(part), "float32", ("batch", "length"), EVENT_NUMBERS)
    if isinstance(part, kinds.RequestList):
        return Input(
            part.name, "int64", ("batch", "members_of_" + re.sub(r"\W", "_", part.name)), CODES, high=part.size
        )
    if isinstance(part, kinds.RequestCategory):
        return Input(part.name, "int64", ("batch",), CODE, high=part.size)
    if isinstance(part, kinds.RequestNumber):
        return Input(part.name, "float32", ("batch",), NUMBER)
    return Input(part.name, "float64", ("batch",), DATE) if isinstance(part, kinds.RequestAge) else None


def _column_name(part: EventBag | EventMean) -> str:
    return "actions" if part.name == ACTION else f"events.{part.name}"


def _mean_vectors(table: nn.Embedding, codes: Tensor, is_member: Tensor) -> Tensor:
    """Return the mean vector of the members of each row, [B, E]; 0 without any."""
    total = (table(codes) * is_member[..., None]).sum(1)
    mean: Tensor = total / is_member.sum(1, keepdim=True).clamp(min=1)
    return mean


def _bucket_codes(values: Tensor, borders: Tensor) -> Tensor:
    """Return `kinds.bucket_codes`: 1 + the number of borders at or below each value; 0 for NaN and infinity."""
    return (1 + (values[:, None] >= borders).sum(1)) * (values.abs() < torch.inf)


def _age_codes(milliseconds: Tensor) -> Tensor:
    """Return the code of an age, as the user tower computes it."""
    return kinds.logarithmic(milliseconds / kinds.HOUR_MS + 1)


def _date_codes(milliseconds: Tensor) -> Tensor:
    """Return the code of the time since a date, as RequestAge computes it."""
    return kinds.logarithmic(milliseconds.double() / kinds.HOUR_MS + 1)


def _length_codes(lengths: Tensor) -> Tensor:
    """Return the code of a number of events, as HistoryLength computes it."""
    return kinds.logarithmic(lengths.double())
