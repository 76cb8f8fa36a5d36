"""Histories of served requests: events of the data set, of the store, and of the request itself, as batches.

The events of a known user are those of the data set, then those that the store has, in the order of their times. An
event that both have counts once: an update copies events of the store into the data of a new version. A request that
contains a history is answered by that history alone. Events of the data set are read from the columns of the
RequestBuilder that also builds the requests of evaluation, and later events are encoded by the same encodings, so a
served request has the same columns as a judged one. Few events are joined in NumPy: for one request, frames and tensors
take longer than the model.

The time of a request is right after the latest event that the server knows: of the data set (without stray dates), of
the user, or of anybody since. A history in a request ends at its own last event.

Shapes: B requests, T events.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import ACTION
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.core.ids import stable_keys
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
        is_own = np.array([request.history is not None for request in requests])
        numbers, keys = self._users(requests)
        events = [
            (new_events or {}).get(request.user_id or "", ()) if request.history is None else request.history
            for request in requests
        ]
        log_users, log = np.where(is_own, 0, numbers), self.builder.log
        former, later, unknown = self._former(log_users), *self._later(events)
        has_times = np.array([all(event.timestamp_ms is not None for event in part) for part in events])
        if log.timestamps is None:
            has_times &= log.offsets[log_users] == log.offsets[np.maximum(log_users - 1, 0)]
        batch, latest = _joined(former, later, has_times)
        times = np.where(is_own, latest, np.maximum(latest, self.latest_ms)) + 1
        impressions = self.builder.shown_items
        shown_columns = {} if impressions is None else impressions.before(log_users, times)
        batch = replace(
            batch,
            **shown_columns,
            request_times=torch.from_numpy(times),
            user_ids=None if self.builder.is_anonymous else torch.from_numpy(keys),
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
                part = part if has_times[rows[0]] else _without_times(part)
                batches.append((rows.tolist(), part))
        return Histories(batches, {row: ids for row, ids in unknown.items() if row not in errors}, errors)

    def _users(self, requests: Sequence[ServedRequest]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the numbers of the users in the data set, and their keys; 0 for a visitor, [B] each."""
        numbers, keys = np.zeros((2, len(requests)), np.int64)
        rows = [row for row, request in enumerate(requests) if self._has_users and request.user_id is not None]
        if rows:
            user_ids = [requests[row].user_id or "" for row in rows]
            numbers[rows], keys[rows] = self.dataset.users.ids.lookup(user_ids), stable_keys(user_ids)
        if self._forgotten:
            is_forgotten = np.isin(numbers, list(self._forgotten))
            numbers[is_forgotten] = keys[is_forgotten] = 0
        return numbers, keys

    def _former(self, numbers: NDArray[np.int64]) -> _Events:
        """Return the events of the data set, with an item, of the users with these numbers (0: none)."""
        builder, log = self.builder, self.builder.log
        starts = log.offsets[np.maximum(numbers - 1, 0)]
        lengths = log.offsets[numbers] - starts
        offsets = lengths.cumsum() - lengths
        rows = np.arange(lengths.sum()) + np.repeat(starts - offsets, lengths)
        owner, items = np.repeat(np.arange(len(numbers)), lengths), log.item_ids[rows]
        has_item = items > 0
        if not has_item.all():
            rows, owner, items = rows[has_item], owner[has_item], items[has_item]
        times = np.zeros(len(rows), np.int64) if log.timestamps is None else log.timestamps[rows]
        columns = builder.features if builder.actions is None else {**builder.features, ACTION: builder.actions}
        return _Events(owner, items, times, {name: column[rows] for name, column in columns.items()})

    def _later(self, events: Sequence[Sequence[HistoryEvent]]) -> tuple[_Events, dict[int, tuple[str, ...]]]:
        """Return the events with a known item, and the ids of the others by request."""
        flat = [event for part in events for event in part]
        owner = np.repeat(np.arange(len(events)), [len(part) for part in events])
        items = self.dataset.catalog.ids.lookup([event.item_id.strip() for event in flat])
        unknown: dict[int, tuple[str, ...]] = {}
        if not items.all():
            for place in np.flatnonzero(items == 0).tolist():
                row = int(owner[place])
                unknown[row] = (*unknown.get(row, ()), flat[place].item_id)
            places = np.flatnonzero(items)
            flat, owner, items = [flat[place] for place in places], owner[places], items[places]
        times = np.array([event.timestamp_ms or 0 for event in flat], dtype=np.int64)
        return _Events(owner, items, times, self._columns(flat)), unknown

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

    def _columns(self, events: Sequence[HistoryEvent]) -> dict[str, NDArray[Any]]:
        """Return the columns of events that models read, encoded."""
        columns: dict[str, NDArray[Any]] = {}
        for name, encoding in self.dataset.catalog.events.items():
            if name == ACTION:
                values = [event.action for event in events]
            else:
                values = [checked_value(event.columns.get(name), encoding.kind, name) for event in events]
            columns[name] = encoding.encode_few(values)
        return columns

    def _context(
        self, requests: Sequence[ServedRequest], numbers: np.ndarray[Any, np.dtype[np.int64]]
    ) -> dict[str, Any]:
        """Return the features of requests and of users with these numbers, encoded."""
        context = context_of(self.builder.users, torch.from_numpy(numbers))
        for name in sorted({name for request in requests for name in request.context}):
            encoding = self.dataset.catalog.requests[name]
            values = [checked_value(request.context.get(name), encoding.kind, name) for request in requests]
            if encoding.kind == "categorical-list":
                column = pl.DataFrame([series_of(name, values, encoding.kind)])
                own = request_values(column, {name: encoding})[name]
            else:
                own = torch.from_numpy(encoding.encode_few(values))
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


class _Events(NamedTuple):
    """Events of the histories of B requests, ordered by request, with their times in milliseconds (0: none)."""

    owner: NDArray[np.int64]
    items: NDArray[np.int32]
    times: NDArray[np.int64]
    columns: dict[str, NDArray[Any]]

    def select(self, places: NDArray[Any]) -> _Events:
        """Return the events at some places, or those of a mask."""
        columns = {name: column[places] for name, column in self.columns.items()}
        return _Events(self.owner[places], self.items[places], self.times[places], columns)


def _joined(former: _Events, later: _Events, has_times: NDArray[np.bool_]) -> tuple[SequenceBatch, NDArray[np.int64]]:
    """Return histories with the events of `former`, then those of `later`, and the latest time of each, [B].

    Events are sorted by time if all of a history have one (`has_times [B]`).
    """
    later = _without_copies(former, later, has_times)
    owner = np.concatenate([former.owner, later.owner])
    times = np.concatenate([former.times, later.times]) * has_times[owner]
    order = np.lexsort((times, owner))  # stable
    offsets = np.zeros(len(has_times) + 1, np.int64)
    np.cumsum(np.bincount(owner, minlength=len(has_times)), out=offsets[1:])
    times = times[order]
    latest = np.zeros(len(has_times), np.int64)
    has_events = offsets[1:] > offsets[:-1]
    latest[has_events] = np.maximum(times[offsets[1:][has_events] - 1], 0)
    items = Jagged(
        torch.from_numpy(np.concatenate([former.items, later.items])[order].astype(np.int64)), torch.from_numpy(offsets)
    )
    columns = {
        name: items.with_values(torch.from_numpy(np.concatenate([column, later.columns[name]])[order]))
        for name, column in former.columns.items()
    }
    actions, timestamps = columns.pop(ACTION, None), items.with_values(torch.from_numpy(times))
    return SequenceBatch(items, actions=actions, timestamps=timestamps, features=columns), latest


def _without_copies(former: _Events, later: _Events, has_times: NDArray[np.bool_]) -> _Events:
    """Return the later events that the former ones do not contain, with the same item and time.

    Usually all later events come after the former ones, which takes one comparison to see.
    """
    if not (len(former.owner) and len(later.owner)):
        return later
    ends = np.zeros(len(has_times), np.int64)
    np.maximum.at(ends, former.owner, former.times)
    is_suspect = has_times[later.owner] & (later.times <= ends[later.owner])
    if not is_suspect.any():
        return later
    stored = set(zip(former.owner.tolist(), former.times.tolist(), former.items.tolist(), strict=True))
    suspects = np.flatnonzero(is_suspect)
    events = zip(*(column[suspects].tolist() for column in (later.owner, later.times, later.items)), strict=True)
    is_new = np.ones(len(later.owner), np.bool_)
    is_new[suspects] = [event not in stored for event in events]
    return later if is_new.all() else later.select(is_new)
