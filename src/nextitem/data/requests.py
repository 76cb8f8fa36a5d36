"""Requests with histories cut out of a log: what a split asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import ACTION, Catalog, ColumnEncoding
from nextitem.core.dataset import Dataset
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.data.last_time import last_time

Rows = NDArray[np.int64]


def enum_codes(column: pl.Series) -> NDArray[np.int64]:
    """Codes of an Enum column: 1.. in the order of its categories, 0 for null."""
    return (column.to_physical().cast(pl.Int64) + 1).fill_null(0).to_numpy()


def event_values(log: Interactions, catalog: Catalog) -> dict[str, NDArray[Any]]:
    """Columns of events as `catalog.events` encodes them, name -> [T]; a column that the log lacks is all missing.

    Codes are int64 (0: missing or unknown), numbers float32 and times float64 milliseconds (NaN: missing). A model's
    catalogue encodes every log alike, so new actions or values never renumber what the model has learnt.
    """
    present = log.columns.columns
    values: dict[str, NDArray[Any]] = {}
    for name, encoding in catalog.events.items():
        column = log.columns[name] if name in present else pl.Series(name, [None] * len(log), dtype=pl.Null)
        codes = encoding.encode(column)
        values[name] = (codes.fill_null(float("nan")) if codes.dtype.is_float() else codes).to_numpy()
    return values


def action_codes(dataset: Dataset) -> NDArray[np.int64] | None:
    """Action code of every event, [T] int64 (see `event_values`); None if the catalogue knows no actions."""
    if ACTION not in dataset.catalog.events:
        return None
    only_action = replace(dataset.catalog, events={ACTION: dataset.catalog.events[ACTION]})
    return event_values(dataset.interactions, only_action)[ACTION]


def tensor(array: NDArray[Any]) -> Tensor:
    """A tensor over the array's memory; over a copy where that memory may not be written to."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


class RequestBuilder:
    """Builds requests from the log of a data set: for training, for a split and for serving alike.

    There is no other way to make a request from events, so what is served carries what was judged. Columns are encoded
    once, so that a batch costs what it holds.
    """

    def __init__(self, dataset: Dataset, *, order: Rows | None = None) -> None:
        """`order [T]`: rows of the log in another order; starts and ends then count in this order."""
        self.log, self.order = dataset.interactions, order
        self.features = event_values(self.log, dataset.catalog)
        self.actions = self.features.pop(ACTION, None)
        self.users = user_context(dataset)
        self.is_anonymous = dataset.anonymous
        self.dataset = dataset

    @cached_property
    def end_time(self) -> int | None:
        """The last time of the log without stray dates (data.last_time), in ms; None if the log has no times."""
        times = self.log.timestamps
        return None if times is None or not len(times) else last_time(times)

    def build(
        self,
        starts: Rows,
        ends: Rows,
        *,
        targets: Jagged | None = None,
        times: Rows | None = None,
        user_ids: NDArray[np.int32] | None = None,
        exclude_seen: bool = False,
    ) -> SequenceBatch:
        """Build B requests whose histories are the events `starts[b]` to `ends[b] - 1` of the log, [B] each.

        `user_ids` are the users' numbers in this log; the requests carry their keys and features, or none if the log is
        one of anonymous sessions. Events without an item (searches) are left out of the histories; every other event is
        kept with its action, positive or not: a cancelled purchase tells as much about taste as a purchase.
        `exclude_seen` excludes the items of the history.
        """
        items, rows, offsets = _histories(self.log, starts, ends, self.order)

        def along(column: NDArray[np.generic]) -> Jagged:
            return Jagged(tensor(column[rows]), offsets)

        users = None if user_ids is None or self.is_anonymous else user_ids.astype(np.int64)
        timestamps = self.log.timestamps
        return SequenceBatch(
            items,
            user_ids=None if users is None else tensor(self.dataset.users.keys[users]),
            actions=None if self.actions is None else along(self.actions),
            timestamps=None if timestamps is None else along(timestamps),
            features={name: along(values) for name, values in self.features.items()},
            request_times=None if times is None else tensor(times),
            context={} if users is None else context_of(self.users, torch.from_numpy(users)),
            targets=targets,
            excluded=items if exclude_seen else None,
        )


def build_requests(
    dataset: Dataset,
    starts: Rows,
    ends: Rows,
    *,
    targets: Jagged | None,
    times: Rows | None = None,
    user_ids: NDArray[np.int32] | None = None,
    order: Rows | None = None,
    exclude_seen: bool = False,
) -> SequenceBatch:
    """The requests of a whole split: see RequestBuilder."""
    builder = RequestBuilder(dataset, order=order)
    return builder.build(starts, ends, targets=targets, times=times, user_ids=user_ids, exclude_seen=exclude_seen)


def request_values(columns: pl.DataFrame, known: Mapping[str, ColumnEncoding]) -> dict[str, Tensor | Jagged]:
    """Request columns as `catalog.requests` encodes them: codes, NaN for a missing number or time.

    `known` says which columns of the frame, by their names there; lists are Jagged.
    """
    values: dict[str, Tensor | Jagged] = {}
    for name, column in known.items():
        codes = column.encode(columns[name])
        if column.kind == "categorical-list":
            lengths = tensor(codes.list.len().fill_null(0).cast(pl.Int64).to_numpy())
            members = codes.explode().drop_nulls().cast(pl.Int64)
            values[name] = Jagged.from_lengths(tensor(members.to_numpy()), lengths)
        else:
            values[name] = tensor((codes.fill_null(float("nan")) if codes.dtype.is_float() else codes).to_numpy())
    return values


def user_context(dataset: Dataset) -> dict[str, Tensor | Jagged]:
    """Features of all users by the names they have in a request's context, U + 1 rows; row 0: nobody known."""
    known = {name: column for name, column in dataset.catalog.requests.items() if name.startswith("user.")}
    table = dataset.users.table
    own = {name.removeprefix("user."): column for name, column in known.items()}
    present = table.select(column for column in own if column in table.columns)
    nobody = pl.DataFrame({name: pl.Series([None], dtype=kind) for name, kind in present.schema.items()})
    rows = pl.concat([nobody, present])
    values = request_values(rows, {name: own[name] for name in present.columns})
    return {f"user.{name}": column for name, column in values.items()}


def context_of(users: Mapping[str, Tensor | Jagged], user_ids: Tensor) -> dict[str, Any]:
    """The rows of these users [B]."""
    return {
        name: column.select(user_ids) if isinstance(column, Jagged) else column[user_ids]
        for name, column in users.items()
    }


def _histories(log: Interactions, starts: Rows, ends: Rows, order: Rows | None) -> tuple[Jagged, Rows, Tensor]:
    lengths = ends - starts
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = np.arange(offsets[-1], dtype=np.int64)
    rows += np.repeat(starts - offsets[:-1], lengths)
    if order is not None:
        rows = order[rows]
    items = log.item_ids[rows]
    real = items > 0
    if not real.all():
        kept = np.concatenate([[0], np.cumsum(real)])
        offsets = kept[offsets]
        rows, items = rows[real], items[real]
    bounds = torch.from_numpy(offsets)
    return Jagged(torch.from_numpy(items.astype(np.int64)), bounds), rows, bounds


def target_sets(log: Interactions, rows: Rows, owners: Rows, *, count: int) -> Jagged:
    """The distinct items of the events `rows` for each owner 0..count - 1, in order of first occurrence.

    `owners` must not fall along `rows`.
    """
    items = log.item_ids[rows].astype(np.int64)
    keys = owners * (log.num_items + 1) + items
    first = np.sort(np.unique(keys, return_index=True)[1])
    lengths = np.bincount(owners[first], minlength=count)
    return Jagged.from_lengths(torch.from_numpy(items[first]), torch.from_numpy(lengths.astype(np.int64)))


def single_targets(log: Interactions, rows: Rows) -> Jagged:
    """One target a request: the items of the events `rows`."""
    items = torch.from_numpy(log.item_ids[rows].astype(np.int64))
    return Jagged(items, torch.arange(len(rows) + 1))


def earlier_items(log: Interactions, starts: Rows, ends: Rows) -> Rows:
    """How many events with an item stand in `starts[b]` to `ends[b] - 1` of the log, [B]."""
    before: Rows = np.concatenate([[0], np.cumsum(log.item_ids > 0)])
    counts: Rows = before[ends] - before[starts]
    return counts
