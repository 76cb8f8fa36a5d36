"""Build requests from the events of a log: histories, context, and targets if they are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, lru_cache
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
from nextitem.data.shown_items import ShownItems

Rows = NDArray[np.int64]


def enum_codes(column: pl.Series) -> NDArray[np.int64]:
    """Return the codes of an Enum column: 1.. in the order of its categories, 0 for null."""
    return (column.to_physical().cast(pl.Int64) + 1).fill_null(0).to_numpy()


def event_values(log: Interactions, catalog: Catalog) -> dict[str, NDArray[Any]]:
    """Return the columns of events as `catalog.events` encodes them, name -> [T].

    Codes are int64 (0: missing or unknown), numbers float32, and times float64 milliseconds (NaN: missing). All values
    of a column that the log lacks are missing. A model's catalogue encodes every log in the same way, so new actions or
    values never change the codes that the model was trained with.
    """
    present = log.columns.columns
    values: dict[str, NDArray[Any]] = {}
    for name, encoding in catalog.events.items():
        if name in present:
            values[name] = _encoded(encoding, log.columns[name])
        else:
            values[name] = np.repeat(_missing_value(encoding), len(log))
    return values


def _encoded(encoding: ColumnEncoding, column: pl.Series) -> NDArray[Any]:
    codes = encoding.encode(column)
    return (codes.fill_null(float("nan")) if codes.dtype.is_float() else codes).to_numpy()


@lru_cache(maxsize=256)
def _missing_value(encoding: ColumnEncoding) -> NDArray[Any]:
    """Return the code of a missing value, [1]; a few events of a request have most columns missing."""
    return _encoded(encoding, pl.Series([None], dtype=pl.Null))


def action_codes(dataset: Dataset) -> NDArray[np.int64] | None:
    """Return the action code of every event, [T] int64 (see `event_values`); None if the catalogue has no actions."""
    if ACTION not in dataset.catalog.events:
        return None
    only_action = replace(dataset.catalog, events={ACTION: dataset.catalog.events[ACTION]})
    return event_values(dataset.interactions, only_action)[ACTION]


def tensor(array: NDArray[Any]) -> Tensor:
    """Return a tensor that shares the array's memory, or that of a copy if the array is read-only."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


class RequestBuilder:
    """Builder of requests from the log of a data set, for training, evaluation and serving.

    No other code builds requests from events, so served requests have the same columns as evaluated ones. Columns are
    encoded once, so that the cost of a batch depends on its size alone.
    """

    def __init__(self, dataset: Dataset, *, order: Rows | None = None) -> None:
        """Encode the columns of the log.

        `order [T]` are the rows of the log in another order; starts and ends of histories then count in this order.
        """
        self.log, self.order = dataset.interactions, order
        self.features = event_values(self.log, dataset.catalog)
        self.actions = self.features.pop(ACTION, None)
        self.users = user_context(dataset)
        self.is_anonymous = dataset.anonymous
        self.dataset = dataset

    @cached_property
    def end_time(self) -> int | None:
        """Return the last time of the log without stray dates (data.last_time), in ms; None if the log has no times."""
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
        """Build B requests whose histories are the events `starts[b]` to `ends[b] - 1` of the log.

        Events without an item (searches) are left out of the histories. Every other event is part of the history with
        its action, positive or not: a cancelled purchase is as informative about taste as a purchase.

        Args:
            starts: first event of each history, [B].
            ends: the event after the last one of each history, [B].
            targets: items to predict, B rows; None: not known.
            times: times of the requests in milliseconds, [B]; None: not known.
            user_ids: numbers of the users in this log, [B]. Requests contain their keys and features, or none if the
                log is one of anonymous sessions.
            exclude_seen: exclude the items of the history from recommendation.

        """
        items, rows, offsets = _histories(self.log, starts, ends, self.order)

        def of_histories(column: NDArray[np.generic]) -> Jagged:
            """Return a column of the log for the events of the histories."""
            return Jagged(tensor(column[rows]), offsets)

        users = None if user_ids is None or self.is_anonymous else user_ids.astype(np.int64)
        shown_columns: dict[str, Any] = {}
        if users is not None and times is not None and self.shown_items is not None:
            shown_columns = self.shown_items.before(users, times)
        timestamps = self.log.timestamps
        return SequenceBatch(
            items,
            user_ids=None if users is None else tensor(self.dataset.users.keys[users]),
            actions=None if self.actions is None else of_histories(self.actions),
            timestamps=None if timestamps is None else of_histories(timestamps),
            features={name: of_histories(values) for name, values in self.features.items()},
            **shown_columns,
            request_times=None if times is None else tensor(times),
            context={} if users is None else context_of(self.users, torch.from_numpy(users)),
            targets=targets,
            excluded=items if exclude_seen else None,
        )

    @cached_property
    def shown_items(self) -> ShownItems | None:
        """Return the impressions of the data set by user and time; None if no impression of a known user has a time."""
        return ShownItems.of(self.dataset.impressions)


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
    """Return the requests of a whole split; arguments are those of RequestBuilder and its method `build`."""
    builder = RequestBuilder(dataset, order=order)
    return builder.build(starts, ends, targets=targets, times=times, user_ids=user_ids, exclude_seen=exclude_seen)


def request_values(columns: pl.DataFrame, encodings: Mapping[str, ColumnEncoding]) -> dict[str, Tensor | Jagged]:
    """Return request columns as `catalog.requests` encodes them: codes, or numbers and times (NaN: missing).

    `encodings` are the encodings of columns of the frame, by their names in it. Lists are returned as Jagged.
    """
    values: dict[str, Tensor | Jagged] = {}
    for name, column in encodings.items():
        codes = column.encode(columns[name])
        if column.kind == "categorical-list":
            lengths = tensor(codes.list.len().fill_null(0).cast(pl.Int64).to_numpy())
            members = codes.explode().drop_nulls().cast(pl.Int64)
            values[name] = Jagged.from_lengths(tensor(members.to_numpy()), lengths)
        else:
            values[name] = tensor((codes.fill_null(float("nan")) if codes.dtype.is_float() else codes).to_numpy())
    return values


def user_context(dataset: Dataset) -> dict[str, Tensor | Jagged]:
    """Return the features of all users by their names in a request's context, U + 1 rows; row 0 is the unknown user."""
    user_columns = {name: column for name, column in dataset.catalog.requests.items() if name.startswith("user.")}
    table = dataset.users.table
    encodings = {name.removeprefix("user."): column for name, column in user_columns.items()}
    present = table.select(column for column in encodings if column in table.columns)
    unknown_user = pl.DataFrame({name: pl.Series([None], dtype=kind) for name, kind in present.schema.items()})
    rows = pl.concat([unknown_user, present])
    values = request_values(rows, {name: encodings[name] for name in present.columns})
    return {f"user.{name}": column for name, column in values.items()}


def context_of(users: Mapping[str, Tensor | Jagged], user_ids: Tensor) -> dict[str, Any]:
    """Return the rows of the table of `user_context` for the users with these numbers, [B]."""
    return {
        name: column.select(user_ids) if isinstance(column, Jagged) else column[user_ids]
        for name, column in users.items()
    }


def _histories(log: Interactions, starts: Rows, ends: Rows, order: Rows | None) -> tuple[Jagged, Rows, Tensor]:
    """Return the items of B histories, the rows of the log that they are, and the offsets [B + 1]."""
    lengths = ends - starts
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = np.arange(offsets[-1], dtype=np.int64)
    rows += np.repeat(starts - offsets[:-1], lengths)
    if order is not None:
        rows = order[rows]
    items = log.item_ids[rows]
    has_item = items > 0
    if not has_item.all():
        num_items = np.concatenate([[0], np.cumsum(has_item)])
        offsets = num_items[offsets]
        rows, items = rows[has_item], items[has_item]
    bounds = torch.from_numpy(offsets)
    return Jagged(torch.from_numpy(items.astype(np.int64)), bounds), rows, bounds


def target_sets(log: Interactions, rows: Rows, owners: Rows, *, count: int) -> Jagged:
    """Return the distinct items of the events `rows` for each owner 0..count - 1, in order of first occurrence.

    `owners` are the owners of the events, in ascending order.
    """
    items = log.item_ids[rows].astype(np.int64)
    keys = owners * (log.num_items + 1) + items
    first = np.sort(np.unique(keys, return_index=True)[1])
    lengths = np.bincount(owners[first], minlength=count)
    return Jagged.from_lengths(torch.from_numpy(items[first]), torch.from_numpy(lengths.astype(np.int64)))


def single_targets(log: Interactions, rows: Rows) -> Jagged:
    """Return one target per request: the items of the events `rows`."""
    items = torch.from_numpy(log.item_ids[rows].astype(np.int64))
    return Jagged(items, torch.arange(len(rows) + 1))


def earlier_items(log: Interactions, starts: Rows, ends: Rows) -> Rows:
    """Return the number of events with an item among `starts[b]` to `ends[b] - 1` of the log, [B]."""
    before: Rows = np.concatenate([[0], np.cumsum(log.item_ids > 0)])
    counts: Rows = before[ends] - before[starts]
    return counts
