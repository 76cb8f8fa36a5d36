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
    """Return an expression that tells whether each row meets a condition; null if the column is empty in that row.

    Args:
        table: the table that is filtered.
        column: the column that is compared.
        value: a comparison with a number (">= 4"), or the accepted value or values. Values are compared as numbers if
            all of them are numbers or booleans, otherwise as text.
        setting: the name of the setting in messages, for example "[interactions] positive".

    Raises:
        UserError: the column or one of the values does not occur, or the comparison cannot be parsed.

    """
    require_declared(table, column, setting=setting)
    usage = f"compared in {setting}"
    if isinstance(value, str) and value.lstrip().startswith(("<", ">", "=", "!")):
        match = COMPARISON.fullmatch(value.strip())
        if match is None:
            raise UserError(f"{setting} = {value!r} for column {column!r}: write a comparison as >= 4")
        return _compare(numeric_column(table, column, what=usage, words=True), match[1], float(match[2]))
    values = value if isinstance(value, tuple) else (value,)
    if all(isinstance(entry, bool | int | float) for entry in values):
        rows: pl.Expr = numeric_column(table, column, what=usage, words=True).cast(pl.Float64)
        accepted_values: list[float] | list[str] = [float(entry) for entry in values]
    else:
        rows, accepted_values = pl.col(column).cast(pl.String).str.strip_chars(), [str(entry) for entry in values]
    for accepted_value, setting_value in zip(accepted_values, values, strict=True):
        if not table.count(rows.eq(accepted_value)):
            problem = f"never contains {setting_value!r}, which {setting} names"
            raise table.problem(column, problem, f"correct {setting} in {table.settings}")
    return rows.is_in(accepted_values)


def _compare(numbers: pl.Expr, operator: str, number: float) -> pl.Expr:
    """Return the comparison of a numeric column with a number; "=" and "==" are the same operator."""
    results = {
        ">=": numbers >= number,
        ">": numbers > number,
        "<=": numbers <= number,
        "<": numbers < number,
        "!=": numbers != number,
    }
    return results.get(operator, numbers == number)


def all_conditions(table: Table, conditions: Mapping[str, Condition], *, setting: str) -> pl.Expr | None:
    """Return an expression that tells whether each row meets all conditions, or None if there are no conditions.

    A row whose column is empty does not meet the condition. Raises UserError if no row meets them.
    """
    if not conditions:
        return None
    parts = [condition(table, column, value, setting=setting) for column, value in conditions.items()]
    rows = pl.all_horizontal(parts).fill_null(False)
    if not table.count(rows):
        text = ", ".join(f"{column} = {value!r}" for column, value in conditions.items())
        raise UserError(f"{table.where}: no row meets {setting} = {{ {text} }}; correct it in {table.settings}")
    return rows
