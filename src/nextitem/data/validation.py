"""Checks of tables: every mistake is a UserError with file, column, row and the way out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nextitem.core.errors import UserError
from nextitem.data.tables import Table

SECONDS_BELOW = 10**11  # whole-number times below this are seconds: 1e11 s is the year 5138, 1e11 ms is 1973
LATEST_MS = 4_102_444_800_000  # 2100-01-01
TIME_FORMATS = ("%Y-%m-%d %H:%M:%S%.f%:z", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
SPLIT_PARTS = ("train", "valid", "test")


def id_column(table: Table, column: str, *, optional: pl.Expr | None = None) -> pl.Expr:
    """The ids of a column as Int64, or as text where they are text or do not all fit.

    Nulls and empty texts are errors except in rows where `optional` holds.
    """
    kind = table.schema[column]
    values = pl.col(column)
    if kind in (pl.Categorical, pl.Enum):
        kind, values = pl.String(), values.cast(pl.String)
    whole = kind.is_integer() or (isinstance(kind, pl.Decimal) and kind.scale == 0)
    if not (whole or kind in (pl.String, pl.Null)):
        raise table.problem(column, f"ids are of type {kind}", "store them as integers or text, without missing values")
    missing = values.is_null() | (values == "") if kind == pl.String else values.is_null()
    if optional is not None:
        missing = missing & ~optional
    row = table.first_row(missing)
    if row is not None:
        raise table.problem(column, "the id is missing", "fill it in or remove the row", row=row)
    if not whole:
        return values.cast(pl.String)
    if kind in (pl.UInt64, pl.Int128, pl.UInt128) or isinstance(kind, pl.Decimal):
        low, high = table.collect(values.min().alias("low"), values.max().alias("high")).row(0)
        if low is not None and not -(2**63) <= int(low) <= int(high) < 2**63:
            return values.cast(pl.Int128).cast(pl.String)
    return values.cast(pl.Int64)


def time_ticks(table: Table, column: str, *, nulls: bool = False) -> tuple[pl.Expr, int]:
    """Event times as Int64 ticks since 1970 UTC, and the number of ticks in a millisecond (1 or 1000).

    Whole numbers are seconds where all lie below 1e11, else milliseconds; datetimes without a zone are UTC;
    finer than milliseconds is kept as microseconds, so that it can decide the order. Times before 1970,
    after 2099, or of two units are errors, and nulls too unless `nulls`.
    """
    kind = table.schema[column]
    if kind == pl.String:
        ticks, per_ms = _parsed_text(table, column), 1000
    elif kind.is_integer():
        return _whole_numbers(table, column, nulls=nulls), 1
    elif kind == pl.Date:
        ticks, per_ms = pl.col(column).cast(pl.Datetime("ms")).to_physical(), 1
    elif isinstance(kind, pl.Datetime):
        fine = kind.time_unit != "ms"
        ticks, per_ms = pl.col(column).dt.timestamp("us" if fine else "ms"), 1000 if fine else 1
    elif kind == pl.Null and nulls:
        ticks, per_ms = pl.col(column).cast(pl.Int64), 1
    else:
        raise table.problem(column, f"times are of type {kind}", "store integer seconds or milliseconds, or datetimes")
    _no_nulls(table, column, nulls=nulls)
    row = table.first_row(~ticks.is_between(0, LATEST_MS * per_ms, closed="left"))
    if row is not None:
        raise table.problem(
            column,
            f"{table.value(column, row)} is not between 1970 and 2099",
            "correct the time or remove the row",
            row=row,
        )
    return ticks, per_ms


def _no_nulls(table: Table, column: str, *, nulls: bool) -> None:
    row = None if nulls else table.first_row(pl.col(column).is_null())
    if row is not None:
        raise table.problem(
            column,
            "the time is missing",
            "fill it in, remove the row, or add a column position with the order of each user's events",
            row=row,
        )


def _whole_numbers(table: Table, column: str, *, nulls: bool) -> pl.Expr:
    times = pl.col(column).cast(pl.Int64, strict=False)
    row = table.first_row(pl.col(column).is_not_null() & (times.is_null() | (times < 0)))
    if row is not None:
        what = f"{table.value(column, row)} is no time after 1970"
        raise table.problem(column, what, "give seconds or milliseconds since 1970", row=row)
    _no_nulls(table, column, nulls=nulls)
    low, high = table.collect(times.min().alias("low"), times.max().alias("high")).row(0)
    seconds = high is None or high < SECONDS_BELOW
    latest = LATEST_MS // 1000 if seconds else LATEST_MS
    unit = "seconds" if seconds else "milliseconds"
    row = None if high is None or high < latest else table.first_row(times >= latest)
    if row is not None:
        what = f"{table.value(column, row)} read as {unit} lies after 2099"
        raise table.problem(column, what, "give seconds or milliseconds since 1970", row=row)
    if not seconds and low < SECONDS_BELOW:
        row = table.first_row(times < SECONDS_BELOW)
        assert row is not None
        raise table.problem(
            column,
            f"{table.value(column, row)} looks like seconds while others, up to {high}, are milliseconds",
            "give all times in one unit",
            row=row,
        )
    return times * 1000 if seconds else times


def _parsed_text(table: Table, column: str) -> pl.Expr:
    # Among whole numbers the stray text is the mistake, although dates would be read too.
    whole = pl.col(column).cast(pl.Int64, strict=False).is_not_null()
    if table.collect(whole.filter(~_empty(column)).first().alias("first"))["first"][0]:
        row = table.first_row(~whole & ~_empty(column))
        if row is not None:
            what = f"{table.value(column, row)!r} is no time, and the first one is a whole number"
            remedy = "give seconds or milliseconds since 1970 in every row"
            raise table.problem(column, what, remedy, row=row)
    text = pl.col(column).str.replace("T", " ", literal=True).str.replace(r"\s*Z$", "+00:00")
    parsed = pl.coalesce(
        text.str.to_datetime(form, time_unit="us", strict=False).dt.timestamp("us") for form in TIME_FORMATS
    )
    row = table.first_row(parsed.is_null() & pl.col(column).is_not_null())
    if row is not None:
        raise table.problem(
            column,
            f"{table.value(column, row)!r} is no time",
            "write 2024-05-31 18:30:00, 2024-05-31, or seconds or milliseconds since 1970",
            row=row,
        )
    return parsed


def position_column(table: Table) -> pl.Expr:
    """The column position as Int64; nulls and other types than integers are errors."""
    kind = table.schema["position"]
    remedy = "store whole numbers, 0 for the first event"
    if kind == pl.String:
        row = table.first_row(pl.col("position").cast(pl.Int64, strict=False).is_null() & ~_empty("position"))
        if row is not None:
            what = f"{table.value('position', row)!r} is no whole number"
            raise table.problem("position", what, remedy, row=row)
    elif not kind.is_integer():
        raise table.problem("position", f"is of type {kind}", remedy)
    row = table.first_row(_empty("position") if kind == pl.String else pl.col("position").is_null())
    if row is not None:
        raise table.problem("position", "is missing", "fill it in, or remove the column", row=row)
    return pl.col("position").cast(pl.Int64)


def numeric_column(table: Table, column: str, *, what: str) -> pl.Expr:
    """A column as numbers (booleans are 0 and 1; nulls stay); finite, or it is an error."""
    kind = table.schema[column]
    if kind == pl.String:
        row = table.first_row(pl.col(column).cast(pl.Float64, strict=False).is_null() & ~_empty(column))
        if row is not None:
            problem = f"{table.value(column, row)!r} is no number, and the column is {what}"
            raise table.problem(column, problem, "write a number or leave it empty", row=row)
        return pl.col(column).cast(pl.Float64, strict=False)
    if not (kind.is_numeric() or kind in (pl.Boolean, pl.Null)):
        raise table.problem(column, f"is of type {kind}, and the column is {what}", "store numbers")
    if kind.is_float():
        row = table.first_row(~pl.col(column).is_finite())
        if row is not None:
            problem = f"{table.value(column, row)} is no finite number"
            raise table.problem(column, problem, "write a number or leave it empty", row=row)
    return pl.col(column).cast(pl.Int8) if kind == pl.Boolean else pl.col(column)


def _empty(column: str) -> pl.Expr:
    return pl.col(column).is_null() | (pl.col(column) == "")


def feature_columns(table: Table, features: Mapping[str, str], *, setting: str) -> list[pl.Expr]:
    """The declared feature columns, each as its type wants it; UserError where a column cannot be that."""
    return [_feature(table, column, kind, setting=setting) for column, kind in features.items()]


def _feature(table: Table, column: str, kind: str, *, setting: str) -> pl.Expr:
    if column not in table:
        raise UserError(
            f"{table.where}: {setting} in dataset.toml names column {column!r}, "
            f"but there are {', '.join(table.schema)}; correct dataset.toml"
        )
    have = table.schema[column]
    if kind == "numeric":
        return numeric_column(table, column, what=f"declared numeric in {setting}")
    if kind == "timestamp":
        ticks, per_ms = time_ticks(table, column, nulls=True)
        return (ticks // per_ms).cast(pl.Datetime("ms")).alias(column)
    if kind in ("categorical-list", "history"):
        return list_column(table, column, pl.String(), what=f"declared {kind} in {setting}")
    if have.is_nested():
        remedy = 'declare it "categorical-list", or store one value a row'
        raise table.problem(column, f"holds lists, and it is declared {kind} in {setting}", remedy)
    return pl.col(column).cast(pl.String) if kind == "text" or have == pl.Categorical else pl.col(column)


def list_column(table: Table, column: str, inner: pl.DataType, *, what: str) -> pl.Expr:
    """A column of lists; in CSV a list is written as JSON: ["red", "blue"]."""
    kind = table.schema[column]
    if isinstance(kind, pl.List | pl.Array):
        return pl.col(column).arr.to_list() if isinstance(kind, pl.Array) else pl.col(column)
    if kind == pl.Null:
        return pl.col(column).cast(pl.List(inner))
    remedy = 'write lists, in CSV as ["red", "blue"] or [0.5, 1.25]'
    if kind != pl.String:
        raise table.problem(column, f"is of type {kind}, and the column is {what}", remedy)
    row = table.first_row(~pl.col(column).str.contains(r"^\s*\[.*\]\s*$"))
    if row is None:
        try:
            table.frame.select(pl.col(column).str.json_decode(pl.List(inner))).collect()
        except pl.exceptions.PolarsError:
            row = _first_not_json(table, column, inner)
    if row is not None:
        raise table.problem(column, f"{table.value(column, row)!r} is no list ({what})", remedy, row=row)
    return pl.col(column).str.json_decode(pl.List(inner))


def _first_not_json(table: Table, column: str, inner: pl.DataType) -> int:
    for row, text in enumerate(table.collect(column)[column], start=1):
        try:
            pl.Series([text]).str.json_decode(pl.List(inner))
        except pl.exceptions.PolarsError:
            return row
    raise AssertionError("decoding failed, and no row is to blame")


def content_columns(table: Table) -> list[pl.Expr]:
    """The columns content_<name>: a vector of one length and finite numbers in every row."""
    return [_content(table, column) for column in table.schema if column.startswith("content_")]


def _content(table: Table, column: str) -> pl.Expr:
    vectors = list_column(table, column, pl.Float64(), what="a content vector")
    kind = table.schema[column]
    if isinstance(kind, pl.List | pl.Array) and not (kind.inner is not None and kind.inner.is_numeric()):
        raise table.problem(column, f"is of type {kind}", "store a list of numbers in every row")
    vectors = vectors.cast(pl.List(pl.Float32))
    row = table.first_row(vectors.is_null())
    if row is not None:
        raise table.problem(column, "the vector is missing", "give every item one, or drop the column", row=row)
    length = table.collect(vectors.list.len().first().alias("length"))["length"][0]
    row = table.first_row(vectors.list.len() != length)
    if row is not None:
        found = len(table.value(column, row))  # type: ignore[arg-type]
        what = f"the vector has {found} numbers, the first has {length}"
        raise table.problem(column, what, "give all vectors one length", row=row)
    bad = vectors.list.eval(~pl.element().is_finite() | pl.element().is_null()).list.any()
    row = table.first_row(bad)
    if row is not None:
        raise table.problem(column, "the vector holds a number that is not finite", "correct it", row=row)
    return vectors.alias(column)


def check_split(table: Table) -> None:
    """The column split holds nothing but train, valid and test."""
    row = table.first_row(~pl.col("split").cast(pl.String).is_in(SPLIT_PARTS).fill_null(False))
    if row is not None:
        what = f"{table.value('split', row)!r} is no part of a split"
        raise table.problem("split", what, "write train, valid or test, or drop the column", row=row)


def check_actions(table: Table, positive: tuple[str, ...] | None) -> list[str]:
    """The distinct actions of a log, sorted; declared positive actions that never occur are errors."""
    if "action" not in table:
        if positive is not None:
            raise table.problem(
                "action",
                f"is missing, and positive_actions = {list(positive)} in dataset.toml needs it",
                "add the column or drop the setting",
            )
        return []
    if table.schema["action"] not in (pl.String, pl.Categorical, pl.Enum, pl.Null):
        raise table.problem("action", f"is of type {table.schema['action']}", "store text: view, purchase, ...")
    found = table.collect(pl.col("action").cast(pl.String).unique().alias("action"))["action"]
    actions = found.drop_nulls().sort().to_list()
    for action in positive or ():
        if action not in actions:
            raise table.problem(
                "action",
                f"never holds {action!r}, which positive_actions names; it holds {', '.join(actions)}",
                "correct positive_actions in dataset.toml",
            )
    return [str(action) for action in actions]


def check_searches(table: Table) -> pl.Expr | None:
    """Which rows are searches (action=search); each needs a query and no item. None where there are none."""
    if "action" not in table:
        return None
    searches = pl.col("action").cast(pl.String).eq_missing("search")
    if table.first_row(searches) is None:
        return None
    table.require("query")
    row = table.first_row(searches & _empty("query"))
    if row is not None:
        raise table.problem("query", "a search without a query", "fill it in or remove the row", row=row)
    row = table.first_row(searches & pl.col("item_id").is_not_null())
    if row is not None:
        raise table.problem("item_id", "a search has no item", "leave item_id empty in searches", row=row)
    return searches


def unknown_items(table: Table, items: Table, unknown: NDArray[np.bool_], *, drop: bool) -> str:
    """A note of the rows whose items the items table lacks; UserError at the first one unless they `drop`."""
    count, row = int(unknown.sum()), int(unknown.argmax()) + 1
    if not drop:
        raise table.problem(
            "item_id",
            f"{table.value('item_id', row)!r} is not in {items.where} ({count} rows have such items)",
            "add the items, or leave these rows out with --drop-unknown-items",
            row=row,
        )
    return f"{table.where}: left out {count} rows whose items are not in {items.where}"


def unique_ids(table: Table, column: str, ids: pl.Expr) -> None:
    """UserError at the first row whose id stands in an earlier row too."""
    row = table.first_row(~ids.is_first_distinct())
    if row is not None:
        what = f"{table.value(column, row)!r} occurs a second time"
        raise table.problem(column, what, "keep one row for each id", row=row)
