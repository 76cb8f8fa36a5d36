"""Conditions on columns: which events may be targets, and which labels count as yes."""

from __future__ import annotations

import re
from collections.abc import Mapping

import polars as pl

from nextitem.core.errors import UserError
from nextitem.data.settings import Condition
from nextitem.data.tables import Table
from nextitem.data.validation import numeric_column, require_declared

COMPARISON = re.compile(r"(>=|<=|==|!=|=|>|<)\s*(-?\d+(?:\.\d+)?)")


def condition(table: Table, column: str, value: Condition, *, setting: str) -> pl.Expr:
    """Return whether each row meets a condition; null if the column is empty there.

    `value` is a comparison with a number (">= 4"), or the value or values that count, compared as numbers if they
    are numbers or booleans, otherwise as text. UserError if the column or one of the values does not occur.
    """
    require_declared(table, column, setting=setting)
    what = f"compared in {setting}"
    if isinstance(value, str) and value.lstrip().startswith(("<", ">", "=", "!")):
        match = COMPARISON.fullmatch(value.strip())
        if match is None:
            raise UserError(f"{setting} = {value!r} for column {column!r}: write a comparison as >= 4")
        return _compare(numeric_column(table, column, what=what, words=True), match[1], float(match[2]))
    values = value if isinstance(value, tuple) else (value,)
    if all(isinstance(each, bool | int | float) for each in values):
        rows: pl.Expr = numeric_column(table, column, what=what, words=True).cast(pl.Float64)
        wanted: list[float] | list[str] = [float(each) for each in values]
    else:
        rows, wanted = pl.col(column).cast(pl.String).str.strip_chars(), [str(each) for each in values]
    for each, given in zip(wanted, values, strict=True):
        if not table.count(rows.eq(each)):
            what = f"never holds {given!r}, which {setting} names"
            raise table.problem(column, what, f"correct {setting} in {table.settings}")
    return rows.is_in(wanted)


def _compare(numbers: pl.Expr, operator: str, number: float) -> pl.Expr:
    results = {
        ">=": numbers >= number,
        ">": numbers > number,
        "<=": numbers <= number,
        "<": numbers < number,
        "!=": numbers != number,
    }
    return results.get(operator, numbers == number)


def all_conditions(table: Table, conditions: Mapping[str, Condition], *, setting: str) -> pl.Expr | None:
    """Return whether each row meets all conditions (an empty column meets none), or None if there are none.

    UserError if no row meets them.
    """
    if not conditions:
        return None
    parts = [condition(table, column, value, setting=setting) for column, value in conditions.items()]
    rows = pl.all_horizontal(parts).fill_null(False)
    if not table.count(rows):
        words = ", ".join(f"{column} = {value!r}" for column, value in conditions.items())
        raise UserError(f"{table.where}: no row meets {setting} = {{ {words} }}; correct it in {table.settings}")
    return rows
