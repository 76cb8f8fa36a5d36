"""Values of request columns that come from outside: checked by the kind of their column, and put into series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from nextitem.core.errors import UserError
from nextitem.data.single_time import milliseconds_of

DTYPES = {
    "categorical": pl.String(),
    "categorical-list": pl.List(pl.String()),
    "numeric": pl.Float64(),
    "timestamp": pl.Int64(),
}


def text(value: object) -> str:
    """Return a value as tables print it: true and false in small letters."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def milliseconds(timestamp: float | None) -> int | None:
    """Return seconds or milliseconds since 1970 as milliseconds."""
    return None if timestamp is None else milliseconds_of(timestamp)


def checked_value(value: Any, kind: str, place: str) -> Any:
    """Return a value as its kind of column has it: text, list of texts, number, or milliseconds since 1970.

    Args:
        value: a text, number, truth value, list of these, or None for missing.
        kind: kind of the column, categorical, categorical-list, numeric or timestamp.
        place: the column, for messages.

    Raises:
        UserError: the value is of another kind.

    """
    if value is None:
        return None
    if kind == "categorical-list":
        if not isinstance(value, list):
            raise UserError(f"{place}: {value!r} is no list; write [{value!r}]")
        return [text(part) for part in value if part is not None]
    if isinstance(value, list):
        raise UserError(f"{place}: a list where one value belongs")
    if kind == "categorical":
        return text(value)
    try:
        return milliseconds_of(value) if kind == "timestamp" else float(value)
    except (ValueError, OverflowError):
        expected = "time; write seconds since 1970 or 2026-01-31T18:00:00" if kind == "timestamp" else "number"
        raise UserError(f"{place}: {value!r} is no {expected}") from None


def series_of(name: str, values: Sequence[Any], kind: str) -> pl.Series:
    """Return values of `checked_value` as a column."""
    return pl.Series(name, values, dtype=DTYPES[kind])
