"""Checks of tables: every mistake raises a UserError with file, column, row and the way out."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nextitem.core.errors import UserError
from nextitem.data.tables import Table
from nextitem.data.times import time_ticks

SPLIT_PARTS = ("train", "valid", "test")
MAX_EXACT = 2**53  # whole numbers up to this one are exact as floats
# Words for yes and no in label columns of text, in lower case.
YES_OR_NO = {"true": 1.0, "t": 1.0, "yes": 1.0, "y": 1.0, "false": 0.0, "f": 0.0, "no": 0.0, "n": 0.0}


def id_column(table: Table, column: str, *, optional: pl.Expr | None = None) -> pl.Expr:
    """Return the ids of a column as Int64, or as text if they are text or do not all fit into 64 bits.

    Spaces at the ends of text are removed; a note counts these ids. Floats are ids if all are whole (a column of
    integers that once had gaps). Raises UserError for nulls, NaN and empty texts, except in rows in which `optional` is
    true.
    """
    kind = table.schema[column]
    values = pl.col(column)
    if kind in (pl.Categorical, pl.Enum):
        kind, values = pl.String(), values.cast(pl.String)
    if kind.is_float():
        return _whole_float_ids(table, column, optional)
    is_whole = kind.is_integer() or (isinstance(kind, pl.Decimal) and kind.scale == 0)
    if not (is_whole or kind in (pl.String, pl.Null)):
        problem = "values of several types" if kind == pl.Object else f"ids are of type {kind}"
        raise table.problem(column, problem, "store them as integers or text, without missing values")
    if kind == pl.String:
        values = _stripped(table, column, values)
    _no_missing_ids(
        table, column, values.is_null() | (values == "") if kind == pl.String else values.is_null(), optional
    )
    if not is_whole:
        return values.cast(pl.String)
    if kind in (pl.UInt64, pl.Int128, pl.UInt128) or isinstance(kind, pl.Decimal):
        low, high = table.collect(values.min().alias("low"), values.max().alias("high")).row(0)
        if low is not None and not -(2**63) <= int(low) <= int(high) < 2**63:
            return values.cast(pl.Int128).cast(pl.String)
    return values.cast(pl.Int64)


def _stripped(table: Table, column: str, values: pl.Expr) -> pl.Expr:
    """Return text ids without spaces at their ends, and add a note with their number."""
    stripped = values.str.strip_chars()
    count = table.count(stripped != values)
    if not count:
        return values
    table.note(f"column {table.own_name(column)!r}: spaces at the ends of {count:,} ids are no part of them")
    return stripped


def _no_missing_ids(table: Table, column: str, is_missing: pl.Expr, optional: pl.Expr | None) -> None:
    """Raise UserError for the first missing id, except in rows in which `optional` is true."""
    row = table.first_row(is_missing if optional is None else is_missing & ~optional)
    if row is not None:
        raise table.problem(column, "the id is missing", "fill it in or remove the row", row=row)


def _whole_float_ids(table: Table, column: str, optional: pl.Expr | None) -> pl.Expr:
    """Return ids that are stored as floats as Int64; raise UserError if one is not an exact whole number."""
    values = pl.col(column).fill_nan(None)
    _no_missing_ids(table, column, values.is_null(), optional)
    row = table.first_row((values != values.round()) | (values.abs() > MAX_EXACT))
    if row is not None:
        what = f"{table.value(column, row)} is no exact whole number, and the ids are of type {table.schema[column]}"
        raise table.problem(column, what, "store ids as integers or text", row=row)
    return values.cast(pl.Int64)


def position_column(table: Table) -> pl.Expr:
    """Return the column position as Int64; raise UserError for nulls and fractions."""
    remedy = "store whole numbers, 0 for the first event"
    numbers = numeric_column(table, "position", what="the order of events")
    if table.schema["position"] == pl.String:
        # Numbers above 2**53, such as ticks of a clock, lose their order as floats.
        integers = pl.col("position").str.strip_chars().cast(pl.Int64, strict=False)
        numbers = numbers if table.count(integers.is_null() & numbers.is_not_null()) else integers
    row = table.first_row(numbers.is_null())
    if row is not None:
        raise table.problem("position", "is missing", "fill it in, or remove the column", row=row)
    row = table.first_row(numbers != numbers.cast(pl.Int64, strict=False))
    if row is not None:
        raise table.problem("position", f"{table.value('position', row)} is no whole number", remedy, row=row)
    return numbers.cast(pl.Int64)


def numeric_column(table: Table, column: str, *, what: str, words: bool = False) -> pl.Expr:
    """Return a column as numbers: text is parsed, booleans are 0 and 1, nulls and NaN are null.

    With `words`, text may also be true/false, yes/no, t/f, y/n. Raises UserError for other text and infinite numbers.
    `what` describes the column in messages.
    """
    kind = table.schema[column]
    remedy = "write a number or leave it empty"
    if kind == pl.String:
        text = pl.col(column).str.strip_chars()
        numbers = text.cast(pl.Float64, strict=False)
        if words:
            lower = text.str.to_lowercase()
            numbers = numbers.fill_null(lower.replace_strict(YES_OR_NO, default=None, return_dtype=pl.Float64))
        row = table.first_row(numbers.is_null() & text.is_not_null() & (text != ""))
        if row is not None:
            problem = f"{table.value(column, row)!r} is no number, and the column is {what}"
            raise table.problem(column, problem, remedy, row=row)
    elif kind == pl.Boolean:
        return pl.col(column).cast(pl.Int8)
    elif kind.is_numeric() or kind == pl.Null:
        numbers = pl.col(column)
    else:
        raise table.problem(column, f"is of type {kind}, and the column is {what}", "store numbers")
    if not (kind.is_float() or kind == pl.String):
        return numbers
    row = table.first_row(numbers.is_infinite())
    if row is not None:
        raise table.problem(column, f"{table.value(column, row)} is no finite number", remedy, row=row)
    return numbers.fill_nan(None)


def is_numeric_column(table: Table, column: str) -> bool:
    """Tell whether `numeric_column` can read a column: numbers, booleans, or text that is all numbers."""
    kind = table.schema[column]
    if kind == pl.String:
        text = pl.col(column).str.strip_chars()
        return not table.count(text.cast(pl.Float64, strict=False).is_null() & (text != ""))
    return kind.is_numeric() or kind in (pl.Boolean, pl.Null)


def _empty(column: str) -> pl.Expr:
    """Return whether the text of a column is null or empty."""
    return pl.col(column).is_null() | (pl.col(column) == "")


def feature_columns(table: Table, features: Mapping[str, str], *, setting: str) -> list[pl.Expr]:
    """Return the declared feature columns, each as its feature type requires; raise UserError if that is impossible."""
    return [_feature(table, column, kind, setting=setting) for column, kind in features.items()]


def label_column(table: Table, column: str, *, setting: str) -> pl.Expr:
    """Return a declared label column as numbers, null in rows without a label."""
    require_declared(table, column, setting=setting)
    return numeric_column(table, column, what=f"declared in {setting}", words=True)


def require_declared(table: Table, column: str, *, setting: str) -> None:
    """Raise UserError unless the table has a column that a setting names."""
    if column not in table:
        raise UserError(
            f"{table.where}: {setting} in {table.settings} names column {column!r}, "
            f"but there are {', '.join(table.schema)}; correct {table.settings}"
        )


def _feature(table: Table, column: str, kind: str, *, setting: str) -> pl.Expr:
    """Return a declared feature column as its feature type requires."""
    require_declared(table, column, setting=setting)
    dtype = table.schema[column]
    if kind == "numeric":
        return numeric_column(table, column, what=f"declared numeric in {setting}")
    if kind == "timestamp":
        ticks, per_ms = time_ticks(table, column, is_feature=True)
        return (ticks // per_ms).cast(pl.Datetime("ms")).alias(column)
    if kind in ("categorical-list", "history"):
        return list_column(table, column, pl.String(), what=f"declared {kind} in {setting}")
    if dtype.is_nested():
        remedy = 'declare it "categorical-list", or store one value a row'
        raise table.problem(column, f"contains lists, and it is declared {kind} in {setting}", remedy)
    return pl.col(column).cast(pl.String) if kind == "text" or dtype == pl.Categorical else pl.col(column)


def list_column(table: Table, column: str, inner: pl.DataType, *, what: str) -> pl.Expr:
    """Return a column of lists; in CSV a list is written as JSON: ["red", "blue"]."""
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
    """Return the number (from 1) of the first row whose text is not a JSON list of the type `inner`."""
    for row, text in enumerate(table.collect(column)[column], start=1):
        try:
            pl.Series([text]).str.json_decode(pl.List(inner))
        except pl.exceptions.PolarsError:
            return row
    raise AssertionError("decoding failed, and no row is to blame")


def content_columns(table: Table, features: Mapping[str, str]) -> list[pl.Expr]:
    """Return the columns content_<name> of vectors: lists of finite numbers, all of one length.

    Columns of such a name with other contents (content_type, content_rating), and declared features, are not vectors.
    Raises UserError if a vector is missing, is not finite or has another length.
    """
    names = [column for column in table.schema if column.startswith("content_") and column not in features]
    return [_content(table, column) for column in names if _has_vectors(table, column)]


def _has_vectors(table: Table, column: str) -> bool:
    """Tell whether a column contains lists of numbers, in text as the first value shows."""
    kind = table.schema[column]
    if isinstance(kind, pl.List | pl.Array):
        return kind.inner is not None and kind.inner.is_numeric()
    if kind != pl.String:
        return False
    first = table.collect(pl.col(column).drop_nulls().first().alias("first"))["first"][0]
    return first is not None and re.fullmatch(r"\s*\[[-+.,\deE\s]*\]\s*", first) is not None


def _content(table: Table, column: str) -> pl.Expr:
    """Return a column of content vectors; raise UserError if one is missing, not finite or of another length."""
    vectors = list_column(table, column, pl.Float64(), what="a content vector").cast(pl.List(pl.Float32))
    row = table.first_row(vectors.is_null())
    if row is not None:
        remedy = "give every item one, or rename the column if it does not contain vectors"
        raise table.problem(column, "the vector is missing", remedy, row=row)
    length = table.collect(vectors.list.len().first().alias("length"))["length"][0]
    row = table.first_row(vectors.list.len() != length)
    if row is not None:
        other = table.frame.select(vectors.list.len()).slice(row - 1, 1).collect().item()
        what = f"the vector has {other} numbers, the first has {length}"
        remedy = "give all vectors one length, or rename the column if it does not contain vectors"
        raise table.problem(column, what, remedy, row=row)
    is_not_finite = vectors.list.eval(~pl.element().is_finite() | pl.element().is_null()).list.any()
    row = table.first_row(is_not_finite)
    if row is not None:
        raise table.problem(column, "the vector contains a number that is not finite", "correct it", row=row)
    return vectors.alias(column)


def check_split(table: Table) -> None:
    """Raise UserError if the column split contains other values than train, valid and test."""
    row = table.first_row(~pl.col("split").cast(pl.String).is_in(SPLIT_PARTS).fill_null(False))
    if row is not None:
        what = f"{table.value('split', row)!r} is no part of a split"
        raise table.problem("split", what, "write train, valid or test, or drop the column", row=row)


def action_text(table: Table) -> pl.Expr:
    """Return the column action as text, null if it is empty; codes of actions may be integers."""
    kind = table.schema["action"]
    if not (kind in (pl.String, pl.Categorical, pl.Enum, pl.Null) or kind.is_integer()):
        raise table.problem("action", f"is of type {kind}", "store text: view, purchase, ...")
    text = pl.col("action").cast(pl.String).str.strip_chars()
    return pl.when(text != "").then(text)


def count_actions(table: Table, positive: tuple[str, ...] | None) -> dict[str, int]:
    """Return the number of events of each action, sorted by name; raise UserError if a positive action never occurs."""
    if "action" not in table:
        if positive is not None:
            raise table.problem(
                "action",
                f"is missing, and positive_actions = {list(positive)} in {table.settings} needs it",
                "add the column or drop the setting",
            )
        return {}
    value_counts = table.collect(action_text(table).value_counts().alias("action"))["action"].struct.unnest()
    counts = {str(action): int(count) for action, count in value_counts.rows() if action is not None}
    for action in positive or ():
        if action not in counts:
            raise table.problem(
                "action",
                f"never contains {action!r}, which positive_actions names; it contains {', '.join(sorted(counts))}",
                f"correct positive_actions in {table.settings}",
            )
    return dict(sorted(counts.items()))


def check_searches(table: Table) -> pl.Expr | None:
    """Return which rows are searches (action=search), or None if there are none.

    Raises UserError if a search has no query, or has an item.
    """
    if "action" not in table:
        return None
    searches = action_text(table).eq_missing("search")
    if table.first_row(searches) is None:
        return None
    table.require("query")
    row = table.first_row(searches & _empty("query"))
    if row is not None:
        raise table.problem("query", "a search without a query", "fill it in or remove the row", row=row)
    item = pl.col("item_id")
    row = table.first_row(searches & item.is_not_null() & (item.cast(pl.String, strict=False) != ""))
    if row is not None:
        remedy = "leave item_id empty in searches, or give this action another name"
        raise table.problem("item_id", "an event with action search has no item", remedy, row=row)
    return searches


def unknown_items(table: Table, items: Table, unknown: NDArray[np.bool_], *, drop: bool) -> None:
    """Add a note with the number of rows whose items the items table lacks; raise UserError unless `drop`."""
    count, row = int(unknown.sum()), int(unknown.argmax()) + 1
    if not drop:
        option = "--drop-unknown-items" if table.is_file else "drop_unknown_items=True"
        raise table.problem(
            "item_id",
            f"{table.value('item_id', row)!r} is not in {items.where} ({count} rows have such items)",
            f"add the items, or skip these rows with {option}",
            row=row,
        )
    table.note(f"left out {count} rows whose items are not in {items.where}")


def unique_ids(table: Table, column: str, ids: pl.Expr) -> None:
    """Raise UserError for the first row whose id occurs in an earlier row."""
    row = table.first_row(~ids.is_first_distinct())
    if row is not None:
        what = f"{table.value(column, row)!r} occurs a second time"
        raise table.problem(column, what, "keep one row for each id", row=row)
