"""Histories of served requests: events of the data set, of the store, and of the request itself, as batches.

The events of a known user are those of the data set, then those that the store has, in the order of their times. An
event that both have counts once: an update copies events of the store into the data of a new version. A request that
contains a history is answered by that history alone. Every batch is built by RequestBuilder, which also builds the
requests of evaluation, so a served request has the same columns as a judged one.

The time of a request is right after the latest event that the server knows: of the data set (without stray dates), of
the user, or of anybody since. A history in a request ends at its own last event.

Shapes: B requests, T events.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import ACTION
from nextitem.core.dataset import Dataset, Users
from nextitem.core.errors import UserError
from nextitem.core.ids import IdMap, stable_keys
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.data.requests import RequestBuilder, context_of, request_values
from nextitem.serving.requests import HistoryEvent, ServedRequest
from nextitem.serving.values import checked_value, series_of


@dataclass(frozen=True)
class Histories:
    """The histories of some requests, as batches.

    Attributes:
        batches: pairs of (indices of the requests, their batch). All requests of a batch have a time, or none has, as a
            model may read times.
        skipped: ids of the histories that no item has, by the index of the request.
        errors: what is wrong with a request, by its index; such a request is in no batch.

    """

    batches: list[tuple[list[int], SequenceBatch]]
    skipped: dict[int, tuple[str, ...]]
    errors: dict[int, UserError]


class HistoryReader:
    """Reader of the histories of requests, from a data set and from events since then."""

    def __init__(self, dataset: Dataset) -> None:
        """Encode the log of the data set once, and build the indexes of the ids of items and users."""
        self.dataset, self.builder = dataset, RequestBuilder(dataset)
        dataset.catalog.ids.lookup([])  # builds its index
        dataset.users.ids.lookup([])
        self.latest_ms = self.builder.end_time or 0
        self._empty: dict[int, SequenceBatch] = {}  # histories without events, by their number
        self._has_users = True  # whether users of the data set may ask
        self._forgotten: frozenset[int] = frozenset()  # numbers of users whose events in the data set do not count

    def for_other_users(self) -> HistoryReader:
        """Return a reader for users none of whom is a user of the data set, whatever their ids, with a time of its own.

        It shares the data set and its indexes with this one.
        """
        reader = copy.copy(self)
        reader.latest_ms, reader._has_users = self.builder.end_time or 0, False
        return reader

    def forget(self, users: frozenset[int]) -> None:
        """Treat users of the data set, by their numbers, as users who are not in it from now on."""
        self._forgotten |= users - {0}

    def user_ids(self) -> pl.Series:
        """Return the external ids of the users of the data set, without those who were forgotten."""
        ids = self.dataset.users.ids.external
        is_forgotten = np.zeros(len(ids), dtype=np.bool_)
        is_forgotten[np.array(sorted(self._forgotten), dtype=np.int64) - 1] = True
        return ids.filter(~pl.Series(is_forgotten)) if self._forgotten else ids

    def advance(self, timestamp_ms: int) -> None:
        """Move the time of requests on to that of an event."""
        self.latest_ms = max(self.latest_ms, timestamp_ms)

    def read(
        self, requests: Sequence[ServedRequest], new_events: Mapping[str, Sequence[HistoryEvent]] | None = None
    ) -> Histories:
        """Build the batches of some requests.

        Args:
            requests: the requests.
            new_events: events since the data set, oldest first, by user id.

        """
        errors: dict[int, UserError] = {}
        requests = [self._valid(row, request, errors) for row, request in enumerate(requests)]
        user_ids = [request.user_id or "" for request in requests]
        has_user = np.array([self._has_users and request.user_id is not None for request in requests])
        numbers = np.where(has_user, self.dataset.users.ids.lookup(user_ids), 0).astype(np.int64)
        if self._forgotten:
            is_forgotten = np.isin(numbers, list(self._forgotten))
            has_user, numbers = has_user & ~is_forgotten, np.where(is_forgotten, 0, numbers)
        log_users = np.where([request.history is None for request in requests], numbers, 0)
        events = [
            (new_events or {}).get(request.user_id or "", ()) if request.history is None else request.history
            for request in requests
        ]
        log = self.builder.log
        bounds = np.concatenate([[0], log.offsets])
        starts, ends = bounds[log_users], np.where(log_users > 0, log.offsets[log_users], 0)
        former = self.builder.build(starts, ends)
        later, times, unknown = self._later(events)
        has_times = np.array([all(event.timestamp_ms is not None for event in part) for part in events])
        has_times &= (starts == ends) | (log.timestamps is not None)
        batch, latest = _joined(former, later, times, torch.from_numpy(has_times))
        is_own = torch.tensor([request.history is not None for request in requests])
        request_times = torch.where(is_own, latest, latest.clamp(min=self.latest_ms)) + 1
        users = np.where(has_user, stable_keys(user_ids), 0)
        impressions = self.builder.shown_items
        shown_columns = {} if impressions is None else impressions.before(log_users, request_times.numpy())
        batch = replace(
            batch,
            **shown_columns,
            request_times=request_times,
            user_ids=None if self.builder.is_anonymous else torch.from_numpy(users),
            context=self._context(requests, numbers),
        )
        for row, request in enumerate(requests):
            if request.history is not None and unknown.get(row) and len(unknown[row]) == len(request.history):
                errors.setdefault(row, self._no_item(unknown[row]))
        is_valid = np.array([row not in errors for row in range(len(requests))], dtype=np.bool_)
        batches = []
        for rows in (np.flatnonzero(is_valid & has_times), np.flatnonzero(is_valid & ~has_times)):
            if len(rows):
                part = batch if len(rows) == len(requests) else batch.select(torch.from_numpy(rows))
                is_dated = bool(has_times[rows[0]]) and part.timestamps is not None
                part = part if is_dated else _without_times(part)
                batches.append((rows.tolist(), part))
        return Histories(batches, {row: ids for row, ids in unknown.items() if row not in errors}, errors)

    def _later(
        self, events: Sequence[Sequence[HistoryEvent]]
    ) -> tuple[SequenceBatch, Tensor, dict[int, tuple[str, ...]]]:
        """Return the events with a known item as a batch, their times (0: none) [T], and the other ids by request."""
        if not any(events):
            return self._no_events(len(events)), torch.zeros(0, dtype=torch.int64), {}
        flat = [event for part in events for event in part]
        owner = np.repeat(np.arange(len(events)), [len(part) for part in events])
        items = self.dataset.catalog.ids.lookup([event.item_id.strip() for event in flat])
        unknown: dict[int, tuple[str, ...]] = {}
        for place in np.flatnonzero(items == 0).tolist():
            row = int(owner[place])
            unknown[row] = (*unknown.get(row, ()), flat[place].item_id)
        places = np.flatnonzero(items)
        flat = [flat[place] for place in places]
        times = torch.tensor([event.timestamp_ms or 0 for event in flat], dtype=torch.int64)
        return self._built(owner[places], items[places], self._columns(flat), len(events)), times, unknown

    def _no_events(self, count: int) -> SequenceBatch:
        """Return `count` histories without events."""
        if count not in self._empty:
            nothing = np.zeros(0, np.int64)
            self._empty[count] = self._built(nothing, nothing.astype(np.int32), pl.DataFrame(), count)
        return self._empty[count]

    def _built(
        self, owner: NDArray[np.int64], items: NDArray[np.int32], columns: pl.DataFrame, count: int
    ) -> SequenceBatch:
        """Return the histories of `count` requests; event t is of request `owner[t]`, in ascending order."""
        num_items = self.dataset.catalog.num_items
        log = Interactions(owner.astype(np.int32) + 1, items, count, num_items, columns=columns)
        builder = RequestBuilder(replace(self.dataset, interactions=log, users=_visitors(count), impressions=None))
        return builder.build(log.offsets[:-1], log.offsets[1:])

    def _valid(self, row: int, request: ServedRequest, errors: dict[int, UserError]) -> ServedRequest:
        """Return the request, or note its error and return one without history and context in its place."""
        catalog = self.dataset.catalog
        try:
            for name, value in request.context.items():
                if name not in catalog.requests:
                    names = ", ".join(catalog.requests) or "no features"
                    raise UserError(f"context {name!r}: no such feature; of a request this model reads {names}")
                checked_value(value, catalog.requests[name].kind, f"context {name!r}")
            for event in request.history or ():
                for name, value in event.columns.items():
                    if name in catalog.events and name != ACTION:
                        checked_value(value, catalog.events[name].kind, f"history: column {name!r}")
        except UserError as error:
            errors[row] = error
            return replace(request, history=(), context={})
        return request

    def _columns(self, events: Sequence[HistoryEvent]) -> pl.DataFrame:
        """Return the columns of events that models read, T rows; a column that no event has is left out."""
        encodings = self.dataset.catalog.events
        columns: dict[str, pl.Series] = {}
        for name in sorted({name for event in events for name in event.columns if name in encodings} - {ACTION}):
            kind = encodings[name].kind
            values = [checked_value(event.columns.get(name), kind, name) for event in events]
            columns[name] = series_of(name, values, kind)
        if any(event.action is not None for event in events):
            columns[ACTION] = pl.Series(ACTION, [event.action for event in events], dtype=pl.String)
        return pl.DataFrame(columns)

    def _context(
        self, requests: Sequence[ServedRequest], numbers: np.ndarray[Any, np.dtype[np.int64]]
    ) -> dict[str, Any]:
        """Return the features of requests and of users with these numbers, encoded."""
        context = context_of(self.builder.users, torch.from_numpy(numbers))
        for name in sorted({name for request in requests for name in request.context}):
            encoding = self.dataset.catalog.requests[name]
            values = [checked_value(request.context.get(name), encoding.kind, name) for request in requests]
            column = pl.DataFrame([series_of(name, values, encoding.kind)])
            own = request_values(column, {name: encoding})[name]
            is_given = torch.tensor([name in request.context for request in requests])
            former = context.get(name)
            if former is None:
                context[name] = own
            elif isinstance(own, Jagged):
                rows = torch.arange(len(requests)) + is_given * len(requests)
                context[name] = Jagged.concat([former, own]).select(rows)
            else:
                context[name] = torch.where(is_given, own, former)
        return context

    def _no_item(self, ids: Sequence[str]) -> UserError:
        examples = ", ".join(str(item) for item in self.dataset.catalog.ids.external.head(3))
        return UserError(f"history: no item is called {', '.join(ids[:5])}; item ids look like {examples}")


def _without_times(batch: SequenceBatch) -> SequenceBatch:
    """Return the requests without times, and without what was shown before them."""
    return replace(batch, timestamps=None, request_times=None, shown_items=None, shown_times=None, shown_labels={})


@lru_cache(maxsize=256)
def _visitors(count: int) -> Users:
    """Return users without features."""
    return Users(IdMap(pl.Series("id", np.arange(count))))


def _joined(
    former: SequenceBatch, later: SequenceBatch, later_times: Tensor, has_times: Tensor
) -> tuple[SequenceBatch, Tensor]:
    """Return histories with the events of `former`, then those of `later`, and the latest time of each, [B].

    Events are sorted by time if all of a history have one (`has_times [B]`).
    """
    former_times = torch.zeros_like(former.items.values) if former.timestamps is None else former.timestamps.values
    is_new = _is_new(former, former_times, later, later_times, has_times)
    if is_new is not None:
        later, later_times = _kept_events(later, is_new), later_times[is_new]
    rows = torch.cat([former.items.row_ids(), later.items.row_ids()])
    times = torch.cat([former_times, later_times]) * has_times[rows]
    by_time = times.argsort(stable=True)
    order = by_time[rows[by_time].argsort(stable=True)]
    offsets = former.items.offsets + later.items.offsets

    def both(first: Jagged, second: Jagged) -> Jagged:
        return Jagged(torch.cat([first.values, second.values])[order], offsets)

    latest = torch.zeros(len(offsets) - 1, dtype=torch.int64).scatter_reduce(0, rows, times, "amax")
    actions = None
    if former.actions is not None and later.actions is not None:
        actions = both(former.actions, later.actions)
    batch = SequenceBatch(
        both(former.items, later.items),
        actions=actions,
        timestamps=Jagged(times[order], offsets),
        features={name: both(column, later.features[name]) for name, column in former.features.items()},
    )
    return batch, latest


def _is_new(
    former: SequenceBatch, former_times: Tensor, later: SequenceBatch, later_times: Tensor, has_times: Tensor
) -> Tensor | None:
    """Return which later events the former ones do not contain, with the same item and time; None if all are new.

    Usually all later events come after the former ones, which takes one comparison to see.
    """
    former_rows, later_rows = former.items.row_ids(), later.items.row_ids()
    ends = torch.zeros(len(has_times), dtype=torch.int64).scatter_reduce(0, former_rows, former_times, "amax")
    is_suspect = has_times[later_rows] & (later_times <= ends[later_rows])
    if not bool(is_suspect.any()):
        return None
    is_near = former_times >= later_times[is_suspect].min()
    former_events = torch.stack([former_rows[is_near], former_times[is_near], former.items.values[is_near]], dim=1)
    suspects = torch.stack([later_rows, later_times, later.items.values], dim=1)[is_suspect]
    groups = torch.unique(torch.cat([former_events, suspects]), dim=0, return_inverse=True)[1]
    is_copy = torch.isin(groups[len(former_events) :], groups[: len(former_events)])
    is_new = torch.ones_like(is_suspect)
    is_new[is_suspect] = ~is_copy
    return None if bool(is_new.all()) else is_new


def _kept_events(batch: SequenceBatch, mask: Tensor) -> SequenceBatch:
    """Return the histories with the events of the mask [T]."""
    lengths = torch.bincount(batch.items.row_ids()[mask], minlength=batch.num_requests)

    def part(column: Jagged) -> Jagged:
        return Jagged.from_lengths(column.values[mask], lengths)

    return replace(
        batch,
        items=part(batch.items),
        actions=None if batch.actions is None else part(batch.actions),
        features={name: part(column) for name, column in batch.features.items()},
    )
