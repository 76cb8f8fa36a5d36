"""Reader of a log of any size: one pass collects the distinct ids, a second pass encodes the events."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nextitem.core.errors import UserError
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.data import validation
from nextitem.data.conditions import all_conditions
from nextitem.data.settings import InteractionSettings
from nextitem.data.tables import Table
from nextitem.data.times import time_ticks

BATCH_ROWS = 4_000_000  # number of rows in memory as text at a time
OPINIONS = ("rating", "value", "label")  # columns that tell how much a user liked an item
COMPARED = (*OPINIONS, "quantity", "price", "query")  # further columns in which a copy of an event must be equal
POSITIVE, OTHERS = "#positive", "#others"  # temporary columns of a pass, dropped from the data set
Arrays = dict[str, NDArray[Any]]
MISSING = -1  # code of a missing time: valid ones are not negative


class EventReader:
    """Reader of a table of interactions: the constructor checks the table, `read` returns its events."""

    def __init__(self, table: Table, settings: InteractionSettings) -> None:
        self.table = table
        table.require("item_id")
        if "user_id" not in table and "session_id" not in table:
            raise table.lacks("user_id")
        if "timestamp" not in table and "position" not in table:
            raise table.lacks("timestamp")
        if not table.collect(pl.len())["len"][0]:
            raise UserError(
                f"{table.where}: contains no events; a log needs events of at least two users and two items"
            )
        self.settings = settings
        self.anonymous = "user_id" not in table
        self.searches = validation.check_searches(table)
        self.actions = validation.count_actions(table, settings.positive_actions)
        self.user_id = validation.id_column(table, "session_id" if self.anonymous else "user_id")
        self.item_id = validation.id_column(table, "item_id", optional=self.searches)
        self.position = validation.position_column(table) if "position" in table else None
        self.time, self.ticks_per_ms = None, 1
        if "timestamp" in table:
            self.time, self.ticks_per_ms = time_ticks(table, "timestamp", nulls=self.position is not None)
        self.dated = self.time is not None and table.first_row(self.time.is_null()) is None
        self.columns = self._other_columns()
        self.positive = self._positive_rows()

    def user_ids(self) -> pl.Series:
        """Return the distinct ids of users (or anonymous sessions) in the order of their numbers."""
        ids = self.user_id.alias("id")
        if self.anonymous and not self.dated:
            return self.table.collect(ids.unique(maintain_order=True))["id"]
        return self.table.collect(ids.unique())["id"].sort()

    def item_ids(self) -> pl.Series:
        """Return the distinct ids of items."""
        return self.table.collect(self.item_id.alias("id").drop_nulls().unique())["id"]

    def item_type(self) -> pl.DataType:
        """Return the type in which the table stores item ids (after checks)."""
        return self.table.frame.select(self.item_id).collect_schema().dtypes()[0]

    def read(self, users: IdMap, items: IdMap, *, items_table: Table | None, drop_unknown: bool) -> Interactions:
        """Return all events, encoded and in order; notes of the table list what was skipped.

        Args:
            users: numbers of the user ids.
            items: numbers of the item ids.
            items_table: the items table, for messages; None if there is none, so that every item is known.
            drop_unknown: leave out events of items that are not in `items`.

        Raises:
            UserError: an item is not in `items` and `drop_unknown` is false, or the log has fewer than two users or
                items.

        """
        arrays, columns = self._encode(users, items)
        unknown = arrays["item"] == 0
        if self.searches is not None:
            unknown &= columns["action"].ne_missing("search").to_numpy()
        if unknown.any():
            assert items_table is not None
            validation.unknown_items(self.table, items_table, unknown, drop=drop_unknown)
            arrays, columns = _rows(arrays, columns, ~unknown)
        has_gaps = "time" in arrays and bool((arrays["time"] == MISSING).any())
        order = self._order(arrays, has_gaps=has_gaps)
        if order is not None:
            arrays, columns = _rows(arrays, columns, order)
        if self.settings.duplicates != "keep":
            arrays, columns = self._without_copies(arrays, columns)
        ticks = None if has_gaps else arrays.get("time")
        if ticks is not None and self.ticks_per_ms != 1:
            ticks //= self.ticks_per_ms
        interactions = Interactions(
            arrays["user"],
            arrays["item"],
            len(users),
            len(items),
            timestamps=ticks,
            positive=columns[POSITIVE].to_numpy() if POSITIVE in columns.columns else None,
            columns=columns.drop(POSITIVE, OTHERS, strict=False),
        )
        self._check_size(interactions)
        return interactions

    def _order(self, arrays: Arrays, *, has_gaps: bool) -> NDArray[np.int64] | None:
        """Return the indices [T] that sort the events, or None if they are sorted already."""
        users, ticks, position = arrays["user"], arrays.get("time"), arrays.get("position")
        if not has_gaps:
            return event_order(users, *(key for key in (ticks, position) if key is not None))
        assert ticks is not None
        assert position is not None
        num_missing = int((ticks == MISSING).sum())
        self.table.note(f"{num_missing} events have no time, so the log counts as undated")
        return event_order(users, _with_gaps_filled(users, ticks, position), position)

    def _without_copies(self, arrays: Arrays, columns: pl.DataFrame) -> tuple[Arrays, pl.DataFrame]:
        """Drop events that equal an earlier one in every column that is read, or add a note with their number."""
        copies = _copies(arrays, columns)
        if copies is None:
            return arrays, columns
        count, total = int(copies.sum()), len(copies)
        if self.settings.duplicates == "drop":
            self.table.note(f"left out {count:,} of {total:,} events, copies of an earlier event in every column read")
            return _rows(arrays, columns, ~copies)
        self.table.note(
            f"{count:,} of {total:,} events are copies of an earlier one, equal in every column that is read; they are "
            f'kept, events logged twice are dropped by [interactions] duplicates = "drop" in {self.table.settings}'
        )
        return arrays, columns

    def _positive_rows(self) -> pl.Expr | None:
        """Return an expression that tells which rows may be targets, or None if all may.

        Adds a note if columns contain ratings or labels that no setting selects targets by.
        """
        table, settings = self.table, self.settings
        rows = all_conditions(table, settings.positive or {}, setting="[interactions] positive")
        if settings.positive_actions is not None:
            is_positive_action = self.columns["action"].is_in(list(settings.positive_actions)).fill_null(False)
            rows = is_positive_action if rows is None else rows & is_positive_action
        deciding_columns = {*(settings.positive or ()), *(("action",) if settings.positive_actions is not None else ())}
        if settings.positive is None:
            self._note_opinions()
        actions = {name: count for name, count in self.actions.items() if name != "search"}
        if len(actions) > 1 and "action" not in deciding_columns and settings.positive is None:
            counts = ", ".join(f"{name} {count:,}" for name, count in actions.items())
            table.note(
                f"every action may be a target ({counts}); to choose, set "
                f"[interactions] positive_actions = [...] in {table.settings}"
            )
        return rows

    def _note_opinions(self) -> None:
        """Add a note that ratings and labels do not decide which events are targets."""
        table = self.table
        names = dict.fromkeys((*(name for name in OPINIONS if name in table), *self.settings.labels))
        numeric = [name for name in names if validation.is_numeric_column(table, name)]
        spans = []
        for name in numeric:
            numbers = validation.numeric_column(table, name, what="an opinion")
            low, high = table.collect(numbers.min().alias("low"), numbers.max().alias("high")).row(0)
            if low is not None and low < high:
                spans.append((name, low, high))
        if spans:
            name, low, high = spans[0]
            ranges = ", ".join(f"{name} ({low:g} to {high:g})" for name, low, high in spans)
            limit = high if high - low <= 1 else round(high - (high - low) / 4)
            table.note(
                f"every event may be a target, whatever its {ranges}; to choose, set [interactions] positive = "
                f'{{ {name} = ">= {limit:g}" }} in {table.settings}, or positive = {{}} if all count'
            )

    def _other_columns(self) -> dict[str, pl.Expr]:
        """Return the columns other than user, item, time and position: action, session, labels, context."""
        table, settings = self.table, self.settings
        columns: dict[str, pl.Expr] = {}
        if "action" in table:
            columns["action"] = validation.action_text(table).cast(pl.Enum(list(self.actions)))
        if "session_id" in table and not self.anonymous:
            columns["session_id"] = validation.id_column(table, "session_id")
        if self.searches is not None:
            columns["query"] = pl.col("query").cast(pl.String)
        if "split" in table:
            validation.check_split(table)
            columns["split"] = pl.col("split").cast(pl.String).cast(pl.Enum(validation.SPLIT_PARTS))
        columns |= label_columns(table, settings.labels, setting="[interactions] labels")
        columns |= context_columns(table, dict(settings.context), setting="[interactions] context")
        return columns

    def _encode(self, users: IdMap, items: IdMap) -> tuple[Arrays, pl.DataFrame]:
        """Encode the table in file order; return the arrays user, item, time, position, and the other columns.

        Arrays of columns that the table lacks are absent.
        """
        rows = int(self.table.collect(pl.len())["len"][0])
        arrays: Arrays = {"user": np.empty(rows, np.int32), "item": np.empty(rows, np.int32)}
        selected_columns = [self.user_id.alias("#user"), self.item_id.alias("#item")]
        if self.time is not None:
            arrays["time"] = np.empty(rows, np.int64)
            selected_columns.append(self.time.fill_null(MISSING).alias("#time"))
        if self.position is not None:
            arrays["position"] = np.empty(rows, np.int64)
            selected_columns.append(self.position.alias("#position"))
        columns = dict(self.columns)
        if self.positive is not None:
            columns[POSITIVE] = self.positive
        others = [name for name in COMPARED if name in self.table and name not in columns]
        if others and self.settings.duplicates != "keep":
            columns[OTHERS] = pl.struct(others).hash()  # eight bytes a row for columns that are only compared
        selected_columns += [expression.alias(name) for name, expression in columns.items()]
        sessions = self._sessions() if "session_id" in self.columns else None
        parts, start = [], 0
        for batch in self.table.batches(selected_columns, rows=BATCH_ROWS):
            window = slice(start, start + batch.height)
            arrays["user"][window] = users.encode(batch["#user"])
            arrays["item"][window] = items.encode(batch["#item"])
            for name in ("time", "position"):
                if name in arrays:
                    arrays[name][window] = batch[f"#{name}"].to_numpy()
            if sessions is not None:
                numbered = batch.select("#user", "session_id").join(
                    sessions, on=["#user", "session_id"], how="left", maintain_order="left"
                )
                batch = batch.with_columns(numbered["#session"].alias("session_id"))
            parts.append(batch.select(list(columns)))
            start += batch.height
        return arrays, pl.concat(parts)

    def _sessions(self) -> pl.DataFrame:
        """Return a frame with the number of each session of a user, from 1 in order of appearance.

        The same session_id under two users counts as two sessions.
        """
        pair = [self.user_id.alias("#user"), self.columns["session_id"].alias("session_id")]
        first = (
            self.table.frame.select(pair)
            .with_row_index("#row")
            .group_by("#user", "session_id")
            .agg(pl.col("#row").min())
            .sort("#row")
            .collect(engine="streaming")
        )
        return first.select("#user", "session_id", pl.int_range(1, pl.len() + 1, dtype=pl.Int32).alias("#session"))

    def _check_size(self, interactions: Interactions) -> None:
        """Raise UserError if the log has fewer than two users (or sessions) or items with events."""
        owner = "session" if self.anonymous else "user"
        for count, what in (
            (int((np.diff(interactions.offsets) > 0).sum()), owner),
            (int((np.bincount(interactions.item_ids)[1:] > 0).sum()), "item"),
        ):
            if count < 2:
                problem = f"contains events of one {what} only" if count else f"contains no event with an {what}"
                raise UserError(f"{self.table.where}: {problem}; training needs at least two {what}s")


def _rows(arrays: Arrays, columns: pl.DataFrame, rows: NDArray[Any]) -> tuple[Arrays, pl.DataFrame]:
    """Return the rows that a mask or indices select, of the arrays and of the columns."""
    if columns.width:
        columns = columns.filter(pl.Series(rows)) if rows.dtype == np.bool_ else columns[rows]
    return {name: values[rows] for name, values in arrays.items()}, columns


def _copies(arrays: Arrays, columns: pl.DataFrame) -> NDArray[np.bool_] | None:
    """Return a mask [T] of sorted events that equal an earlier one in all columns, or None if there are none."""
    keys = [array for name, array in arrays.items() if name != "item"]
    if len(keys[0]) < 2:
        return None
    # Copies have the same place in the order, so only events that tie with a neighbour are compared.
    ties = np.ones(len(keys[0]) - 1, np.bool_)
    for key in keys:
        ties &= key[1:] == key[:-1]
    rows = np.flatnonzero(np.append(ties, False) | np.append(False, ties))
    if not len(rows):
        return None
    compared = pl.DataFrame({f"#{name}": array[rows] for name, array in arrays.items()})
    if columns.width:
        compared = compared.hstack(columns[rows].get_columns())
    is_copy = ~compared.select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()
    if not is_copy.any():
        return None
    copies = np.zeros(len(keys[0]), np.bool_)
    copies[rows] = is_copy
    return copies


def label_columns(table: Table, labels: tuple[str, ...], *, setting: str) -> dict[str, pl.Expr]:
    """Return the declared label columns by name, as numbers; text may be true/false or yes/no."""
    return {label: validation.label_column(table, label, setting=setting) for label in labels}


def context_columns(table: Table, context: dict[str, str], *, setting: str) -> dict[str, pl.Expr]:
    """Return the context columns by name; categorical ones as an Enum of their distinct values in ascending order."""
    columns = dict(zip(context, validation.feature_columns(table, context, setting=setting), strict=True))
    for name, kind in context.items():
        if kind == "categorical":
            text = columns[name].cast(pl.String)
            values = table.collect(text.unique().alias("value"))["value"].drop_nulls().sort()
            columns[name] = text.cast(pl.Enum(values))
    return columns


def event_order(users: NDArray[np.int32], *keys: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Return the indices [T] of the stable order by user, then keys; None if the rows are in this order already."""
    is_rising = np.zeros(max(0, len(users) - 1), dtype=np.bool_)
    is_equal = ~is_rising
    columns: tuple[NDArray[Any], ...] = (users, *keys)
    for column in columns:
        is_rising |= is_equal & (column[1:] > column[:-1])
        is_equal &= column[1:] == column[:-1]
    if bool((is_rising | is_equal).all()):
        return None
    del is_rising, is_equal
    if len(keys) == 1:
        low, high = int(keys[0].min()), int(keys[0].max())
        span = high - low + 1
        if (int(users.max()) + 1) * span < 2**63:
            # One key is sorted in half the time and memory of two.
            return np.argsort(users * np.int64(span) + (keys[0] - low), kind="stable")
    return np.lexsort(columns[::-1])


def _with_gaps_filled(
    users: NDArray[np.int32], ticks: NDArray[np.int64], position: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return times [T] with gaps filled: a missing time becomes that of the user's last dated event by position.

    Without an earlier dated event it stays MISSING, which sorts first.
    """
    order = np.lexsort((position, users))
    times, owners = ticks[order], users[order]
    dated_rows = np.where(times == MISSING, -1, np.arange(len(times)))
    last = np.maximum.accumulate(dated_rows)
    valid = (last >= 0) & (owners[last] == owners)
    filled = np.empty_like(ticks)
    filled[order] = np.where(valid, times[last], MISSING)
    return filled
