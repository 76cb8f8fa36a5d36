"""Merge new events with the data of a run, into a dataset folder that marks which events are held out.

The folder has the public layout, so that whatever reads a data set reads it too. Its column `split` marks the newest
period `test` and the one before it `valid`. So `nextitem evaluate`, under the protocol `published`, judges the new
version on the events that it has not learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from nextitem.core.config import write_toml
from nextitem.core.errors import UserError
from nextitem.data import validation
from nextitem.data.readers import SHOP
from nextitem.data.settings import TABLES, DatasetSettings, parse_settings, read_settings
from nextitem.data.tables import Table, find_table, frame_table, reading
from nextitem.data.times import time_ticks

SESSION_GAP = pl.duration(minutes=30)  # pause of a user after which events without a session begin a new one
EXPOSURES = ("seen", "shown")  # actions of a server's events that are no choice of the user
ID_COLUMNS = ("user_id", "item_id", "session_id", "impression_id", "event_id")
KEYS = {"items": "item_id", "users": "user_id"}  # tables of which the first row of an id counts
TIME = pl.Datetime("us")


@dataclass(frozen=True)
class Tables:
    """Tables of a data set under their standard names, with its settings.

    Attributes:
        frames: interactions, items, users and impressions, as far as there are any.
        settings: contents of dataset.toml.
        where: name of the place, for messages.

    """

    frames: Mapping[str, pl.DataFrame]
    settings: DatasetSettings
    where: str


@dataclass(frozen=True)
class Merger:
    """Tables of the data of a run and of new events, in one.

    Attributes:
        tables: the merged tables; events are sorted by time, which is a column of microseconds.
        num_new: number of new events that were added.
        num_known: number of new events that the data of the run has already, or that came twice.
        num_unknown: number of new events of items that neither items table has.

    """

    tables: Tables
    num_new: int
    num_known: int
    num_unknown: int

    def times_ms(self) -> pl.Series:
        """Return the times of the events in milliseconds, ascending."""
        return self.tables.frames["interactions"]["timestamp"].dt.epoch("ms")

    def write(self, folder: Path, *, valid_from: int, test_from: int) -> None:
        """Write the dataset folder.

        Args:
            folder: the folder, which must not exist.
            valid_from: milliseconds since 1970; events from then on are marked valid.
            test_from: milliseconds since 1970; events from then on are marked test.

        """
        folder.mkdir(parents=True)
        time = pl.col("timestamp").dt.epoch("ms")
        since_valid = pl.when(time >= valid_from).then(pl.lit("valid")).otherwise(pl.lit("train"))
        split = pl.when(time >= test_from).then(pl.lit("test")).otherwise(since_valid)
        for name, frame in self.tables.frames.items():
            table = frame.with_columns(split.alias("split")) if name == "interactions" else frame
            table.write_parquet(folder / f"{name}.parquet", compression="zstd")
        settings = self.tables.settings.model_dump(exclude_none=True, exclude_defaults=True)
        for name in TABLES:
            settings.get(name, {}).pop("rename", None)
        write_toml(folder / "dataset.toml", {"name": Path(self.tables.where).name, **settings})


def read_tables(source: str | Path, *, like: DatasetSettings | None = None, needs_events: bool = True) -> Tables:
    """Read a dataset folder or the simulated shop.

    Args:
        source: a folder, or "shop".
        like: settings of the data that the folder continues: its renamed columns count if the folder has no settings.
        needs_events: whether the folder must have interactions.

    Raises:
        UserError: there is no such folder, it has no interactions, or a table cannot be read.

    """
    if str(source) == SHOP and like is None:
        from nextitem.data.shop.shop import generate_shop

        shop = generate_shop()
        frames = {name: getattr(shop, name) for name in TABLES}
        tables = {name: frame_table(f"{SHOP}/{name}", frame, rename={}) for name, frame in frames.items()}
        return _standard(tables, parse_settings(shop.settings, where=SHOP), SHOP)
    folder = Path(source)
    with reading(folder):
        if not folder.is_dir():
            problem = "is a file, not a folder" if folder.exists() else "no such folder"
            raise UserError(f"{folder}: {problem}; give a folder with interactions.parquet or interactions.csv")
    has_settings = (folder / "dataset.toml").exists()
    settings = read_settings(folder / "dataset.toml")
    tables = {}
    for name in TABLES:
        table = find_table(folder, name, rename=getattr(settings, name).rename)
        if table is not None:
            rename = {} if has_settings or like is None else getattr(like, name).rename
            tables[name] = _renamed(table, rename)
    if needs_events and "interactions" not in tables:
        raise UserError(f"{folder}: has no interactions; add interactions.parquet or interactions.csv")
    return _standard(tables, settings, str(folder))


def frame_tables(frame: pl.DataFrame, *, where: str) -> Tables:
    """Return a frame of events, with columns under their standard names, as tables. Raises UserError as `read_tables`.

    `where` is the name of the frame in messages.
    """
    return _standard({"interactions": frame_table(where, frame, rename={})}, DatasetSettings(), where)


def merge(base: Tables, new: Tables, *, since_ms: int | None = None) -> Merger:
    """Append new events, items, users and impressions to the tables of a run.

    Events come in the order of their times; of equal times those of the run come first. A new event is left out if the
    run has one with the same `event_id`, or with the same user, item, action and time, and if its action says that the
    item was only seen, unless the data of the run have such actions. Of items and users that both have, the row of the
    run stays.

    Args:
        base: tables of the run.
        new: tables with new events.
        since_ms: earlier new events are left out; None: none.

    Raises:
        UserError: columns of both have types that do not go together.

    """
    frames, former = dict(base.frames), base.frames["interactions"]
    for name, key in KEYS.items():
        if name in new.frames and (name in frames or name == "users"):
            frames[name] = _appended(frames.get(name), new.frames[name], f"{new.where}: {name}")
            frames[name] = frames[name].unique(key, keep="first", maintain_order=True)
    if "impressions" in new.frames and "impressions" in frames:
        frames["impressions"] = _appended(frames["impressions"], new.frames["impressions"], f"{new.where}: impressions")
    events = _fitting(new.frames["interactions"], former)
    if since_ms is not None:
        events = events.filter(pl.col("timestamp").dt.epoch("ms") >= since_ms)
    num_read = events.height
    merged = _appended(former, events, f"{new.where}: interactions")
    events = merged.slice(former.height)
    is_known = _are_known(merged.head(former.height), events)
    events = events.filter(~is_known)
    num_known, num_unknown = num_read - events.height, 0
    if "items" in frames:
        ids, merged_ids = frames["items"]["item_id"].cast(pl.String), events["item_id"].cast(pl.String)
        is_unknown = ~merged_ids.is_in(ids.implode()) & merged_ids.is_not_null()
        num_unknown = int(is_unknown.sum())
        events = events.filter(~is_unknown)
    frames["interactions"] = pl.concat([merged.head(former.height), events]).sort("timestamp", maintain_order=True)
    return Merger(Tables(frames, base.settings, base.where), events.height, num_known, num_unknown)


def _renamed(table: Table, rename: Mapping[str, str]) -> Table:
    """Return the table with the columns renamed that it has under other names."""
    present = {name: own for name, own in rename.items() if own in table and name not in table}
    return frame_table(table.where, table.frame, rename=present) if present else table


def _standard(tables: Mapping[str, Table], settings: DatasetSettings, where: str) -> Tables:
    """Return the tables in memory, with checked ids and times."""
    frames = {}
    for name, table in tables.items():
        is_dated = name in ("interactions", "impressions")
        if name == "interactions":
            table.require("item_id", "timestamp", *(() if "session_id" in table else ("user_id",)))
        columns = []
        searches = validation.check_searches(table) if name == "interactions" else None
        for column in ID_COLUMNS:
            if column in table and column != "event_id":
                may_miss = searches if column == "item_id" else None
                if name == "impressions" and column == "user_id":
                    continue  # a visitor has none
                columns.append(validation.id_column(table, column, optional=may_miss).alias(column))
        if is_dated and "timestamp" in table:
            ticks, per_ms = time_ticks(table, "timestamp")
            columns.append((ticks * (1000 // per_ms)).cast(TIME).alias("timestamp"))
        frame = table.all_columns(columns)
        if name == "interactions":
            order = ["timestamp", "position"] if "position" in frame.columns else ["timestamp"]
            frame = frame.sort(order, maintain_order=True).drop("position", "split", strict=False)
        frames[name] = frame
    return Tables(frames, settings, where)


def _appended(former: pl.DataFrame | None, new: pl.DataFrame, where: str) -> pl.DataFrame:
    """Return the rows of both; a column that only one of them has is null in the rows of the other."""
    if former is None:
        return new
    for column in ID_COLUMNS:
        if column in former.columns and column in new.columns:
            former_ids, new_ids = _one_type(former[column], new[column])
            former, new = former.with_columns(former_ids), new.with_columns(new_ids)
    texts = [name for name, kind in former.schema.items() if isinstance(kind, pl.Enum | pl.Categorical)]
    former = former.with_columns(pl.col(texts).cast(pl.String))  # new values may join
    columns: dict[str, Any] = {}
    for column in former.columns:
        kind = former.schema[column]
        if column in new.columns and new.schema[column] != kind and not _are_both_numbers(kind, new.schema[column]):
            columns[column] = _as_type(new[column], kind, f"{where}: column {column!r}")
    new = new.with_columns(**columns) if columns else new
    return pl.concat([former, new], how="diagonal_relaxed")


def _are_both_numbers(first: pl.DataType, second: pl.DataType) -> bool:
    return first.is_numeric() and second.is_numeric()


def _as_type(column: pl.Series, kind: pl.DataType, where: str) -> pl.Series:
    try:
        return column.cast(kind)
    except pl.exceptions.PolarsError:
        raise UserError(f"{where} is {column.dtype}, and {kind} in the data of the run; write it as {kind}") from None


def _one_type(former: pl.Series, new: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Return ids as integers if all of both are integers, otherwise as text."""
    if former.dtype.is_integer() and new.dtype == pl.String:
        numbers = new.cast(pl.Int64, strict=False)
        if bool((numbers.cast(pl.String).eq_missing(new)).all()):
            return former.cast(pl.Int64), numbers
    kind = pl.Int64 if former.dtype.is_integer() and new.dtype.is_integer() else pl.String
    return former.cast(kind), new.cast(kind)


def _fitting(events: pl.DataFrame, former: pl.DataFrame) -> pl.DataFrame:
    """Return new events with the columns of users, sessions and actions that the former events have."""
    if "user_id" not in former.columns:  # anonymous sessions: whoever sent an event is a session
        if "user_id" in events.columns:
            events = events.drop("session_id", strict=False).rename({"user_id": "session_id"})
    elif "session_id" in former.columns and "session_id" not in events.columns:
        events = _with_sessions(events)
    if "action" not in events.columns:
        return events
    has_actions = "action" in former.columns
    common = former["action"].cast(pl.String).unique().to_list() if has_actions else []
    exposures = [action for action in EXPOSURES if action not in common]
    events = events.filter(~pl.col("action").cast(pl.String).is_in(exposures).fill_null(False))
    return events if has_actions else events.drop("action")


def _with_sessions(events: pl.DataFrame) -> pl.DataFrame:
    """Return the events with a session id: a session of a user ends with a pause."""
    begins = (pl.col("timestamp").diff() > SESSION_GAP).fill_null(True)
    started = pl.when(begins).then(pl.col("timestamp").dt.epoch("ms").cast(pl.String)).forward_fill()
    ordered = events.sort("timestamp", maintain_order=True)
    return ordered.with_columns((pl.col("user_id").cast(pl.String) + "-" + started.over("user_id")).alias("session_id"))


def _are_known(former: pl.DataFrame, events: pl.DataFrame) -> pl.Series:
    """Return which events are among the former ones, or come a second time with one `event_id`."""
    owner = "user_id" if "user_id" in former.columns else "session_id"
    keys = [owner, "item_id", "timestamp", *(["action"] if "action" in former.columns else [])]
    rows = events.select(keys).with_row_index("#row")
    copies = rows.join(former.select(keys).unique(), on=keys, how="semi", nulls_equal=True)["#row"]
    is_known = pl.Series(range(events.height), dtype=pl.UInt32).is_in(copies.implode())
    if "event_id" in events.columns:
        ids = events["event_id"]
        is_known |= ids.is_not_null() & ~ids.is_first_distinct()
        is_known |= ids.is_in(former["event_id"].drop_nulls().implode()).fill_null(False)
    return is_known
