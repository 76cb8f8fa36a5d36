"""EventReader: a log of any size as Interactions, in a pass for distinct ids and a pass that encodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nextitem.core.errors import UserError
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.data import validation
from nextitem.data.settings import InteractionSettings
from nextitem.data.tables import Table

BATCH_ROWS = 4_000_000  # rows in memory as text at a time
NUMBERS = ("rating", "value", "quantity", "price")
Arrays = dict[str, NDArray[Any]]
MISSING = -1  # stands for a missing time: valid ones are not negative


class EventReader:
    """Checks a table of interactions on construction; `read` then gives its events."""

    def __init__(self, table: Table, settings: InteractionSettings) -> None:
        self.table = table
        table.require("item_id")
        if "user_id" not in table and "session_id" not in table:
            raise table.lacks("user_id")
        if "timestamp" not in table and "position" not in table:
            raise table.lacks("timestamp")
        if not table.collect(pl.len())["len"][0]:
            raise UserError(f"{table.where}: holds no events; a log needs some of two users and two items")
        self.settings = settings
        self.anonymous = "user_id" not in table
        self.searches = validation.check_searches(table)
        self.actions = validation.check_actions(table, settings.positive_actions)
        self.user_id = validation.id_column(table, "session_id" if self.anonymous else "user_id")
        self.item_id = validation.id_column(table, "item_id", optional=self.searches)
        self.position = validation.position_column(table) if "position" in table else None
        self.time, self.ticks_per_ms = None, 1
        if "timestamp" in table:
            nulls = self.position is not None
            self.time, self.ticks_per_ms = validation.time_ticks(table, "timestamp", nulls=nulls)
        self.dated = self.time is not None and table.first_row(self.time.is_null()) is None
        self.columns = self._other_columns()

    def user_ids(self) -> pl.Series:
        """Distinct ids of users (or anonymous sessions) in the order of their numbers."""
        ids = self.user_id.alias("id")
        if self.anonymous and not self.dated:
            return self.table.collect(ids.unique(maintain_order=True))["id"]
        return self.table.collect(ids.unique())["id"].sort()

    def item_ids(self) -> pl.Series:
        """Distinct ids of items."""
        return self.table.collect(self.item_id.alias("id").drop_nulls().unique())["id"]

    def item_type(self) -> pl.DataType:
        """The type of the item ids."""
        return self.table.frame.select(self.item_id).collect_schema().dtypes()[0]

    def read(
        self, users: IdMap, items: IdMap, *, items_table: Table | None, drop_unknown: bool
    ) -> tuple[Interactions, list[str]]:
        """All events, encoded and in order, and notes of what was left out.

        UserError at the first item that is not in `items`, unless `drop_unknown`.
        """
        notes: list[str] = []
        arrays, columns = self._encode(users, items)
        unknown = arrays["item"] == 0
        if self.searches is not None:
            unknown &= columns["action"].ne_missing("search").to_numpy()
        if unknown.any():
            assert items_table is not None
            notes.append(validation.unknown_items(self.table, items_table, unknown, drop=drop_unknown))
            arrays, columns = _rows(arrays, columns, ~unknown)
        order = self._order(arrays, notes)
        if order is not None:
            arrays, columns = _rows(arrays, columns, order)
        ticks = arrays.get("time")
        if ticks is not None and self.ticks_per_ms != 1:
            ticks //= self.ticks_per_ms
        interactions = Interactions(
            arrays["user"],
            arrays["item"],
            len(users),
            len(items),
            timestamps=ticks,
            positive=self._positive(columns),
            columns=columns,
        )
        self._check_worth(interactions)
        return interactions, notes

    def _order(self, arrays: Arrays, notes: list[str]) -> NDArray[np.int64] | None:
        """The order of events; takes out of `arrays` what serves nothing but the order."""
        users, ticks, position = arrays["user"], arrays.get("time"), arrays.pop("position", None)
        if ticks is None or not len(ticks) or int(ticks.min()) != MISSING:
            return event_order(users, *(key for key in (ticks, position) if key is not None))
        assert position is not None
        missing = int((ticks == MISSING).sum())
        notes.append(f"{self.table.where}: {missing} events have no time, so the log counts as undated")
        return event_order(users, _with_gaps_filled(users, arrays.pop("time"), position), position)

    def _other_columns(self) -> dict[str, pl.Expr]:
        table, settings = self.table, self.settings
        columns: dict[str, pl.Expr] = {}
        if "action" in table:
            columns["action"] = pl.col("action").cast(pl.String).cast(pl.Enum(self.actions))
        if "session_id" in table and not self.anonymous:
            columns["session_id"] = validation.id_column(table, "session_id")
        for name in NUMBERS:
            if name in table:
                columns[name] = validation.numeric_column(table, name, what="one of numbers")
        if "query" in table:
            columns["query"] = pl.col("query").cast(pl.String)
        if "split" in table:
            validation.check_split(table)
            columns["split"] = pl.col("split").cast(pl.String).cast(pl.Enum(validation.SPLIT_PARTS))
        columns |= label_columns(table, settings.labels, setting="[interactions] labels")
        columns |= context_columns(table, dict(settings.context), setting="[interactions] context")
        return columns

    def _encode(self, users: IdMap, items: IdMap) -> tuple[Arrays, pl.DataFrame]:
        """Arrays user, item, time and position (as far as there are), and the other columns; in file order."""
        rows = int(self.table.collect(pl.len())["len"][0])
        arrays: Arrays = {"user": np.empty(rows, np.int32), "item": np.empty(rows, np.int32)}
        wanted = [self.user_id.alias("#user"), self.item_id.alias("#item")]
        if self.time is not None:
            arrays["time"] = np.empty(rows, np.int64)
            wanted.append(self.time.fill_null(MISSING).alias("#time"))
        if self.position is not None:
            arrays["position"] = np.empty(rows, np.int64)
            wanted.append(self.position.alias("#position"))
        wanted += [expression.alias(name) for name, expression in self.columns.items()]
        sessions = self._sessions() if "session_id" in self.columns else None
        parts, start = [], 0
        for batch in self.table.batches(wanted, rows=BATCH_ROWS):
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
            parts.append(batch.select(list(self.columns)))
            start += batch.height
        return arrays, pl.concat(parts)

    def _sessions(self) -> pl.DataFrame:
        """Each session of a user with its number, from 1 in order of appearance.

        The same session_id under two users is two sessions.
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

    def _positive(self, columns: pl.DataFrame) -> NDArray[np.bool_] | None:
        if self.settings.positive_actions is None:
            return None
        positive = columns["action"].is_in(list(self.settings.positive_actions)).fill_null(False)
        return positive.to_numpy()

    def _check_worth(self, interactions: Interactions) -> None:
        who = "session" if self.anonymous else "user"
        for count, what in (
            (int((np.diff(interactions.offsets) > 0).sum()), who),
            (int((np.bincount(interactions.item_ids)[1:] > 0).sum()), "item"),
        ):
            if count < 2:
                found = f"holds events of one {what} only" if count else f"holds no event with an {what}"
                raise UserError(f"{self.table.where}: {found}; nothing can be learnt from fewer than two {what}s")


def _rows(arrays: Arrays, columns: pl.DataFrame, rows: NDArray[Any]) -> tuple[Arrays, pl.DataFrame]:
    """The rows of a mask or of indices."""
    if columns.width:
        columns = columns.filter(pl.Series(rows)) if rows.dtype == np.bool_ else columns[rows]
    return {name: values[rows] for name, values in arrays.items()}, columns


def label_columns(table: Table, labels: tuple[str, ...], *, setting: str) -> dict[str, pl.Expr]:
    """The declared label columns by name, as numbers."""
    expressions = validation.feature_columns(table, dict.fromkeys(labels, "numeric"), setting=setting)
    return dict(zip(labels, expressions, strict=True))


def context_columns(table: Table, context: dict[str, str], *, setting: str) -> dict[str, pl.Expr]:
    """Context columns by name; categorical ones as an Enum of their distinct values in ascending order."""
    columns = dict(zip(context, validation.feature_columns(table, context, setting=setting), strict=True))
    for name, kind in context.items():
        if kind == "categorical":
            text = columns[name].cast(pl.String)
            values = table.collect(text.unique().alias("value"))["value"].drop_nulls().sort()
            columns[name] = text.cast(pl.Enum(values))
    return columns


def event_order(users: NDArray[np.int32], *keys: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The stable order by user, then keys; None where the rows stand in it already."""
    rising = np.zeros(max(0, len(users) - 1), dtype=np.bool_)
    equal = ~rising
    columns: tuple[NDArray[Any], ...] = (users, *keys)
    for column in columns:
        rising |= equal & (column[1:] > column[:-1])
        equal &= column[1:] == column[:-1]
    if bool((rising | equal).all()):
        return None
    del rising, equal
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
    """A missing time becomes that of the user's last dated event before it by position, else stays least."""
    order = np.lexsort((position, users))
    times, owners = ticks[order], users[order]
    known = np.where(times == MISSING, -1, np.arange(len(times)))
    last = np.maximum.accumulate(known)
    valid = (last >= 0) & (owners[last] == owners)
    filled = np.empty_like(ticks)
    filled[order] = np.where(valid, times[last], MISSING)
    return filled
