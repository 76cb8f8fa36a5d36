"""Convert data frames of other libraries to polars frames, and map their column names to the standard names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, cast

import polars as pl

from nextitem.core.errors import UserError
from nextitem.data.tables import failed_frame

Frame = pl.DataFrame | pl.LazyFrame
Columns = Mapping[str, str | Mapping[str, str]]  # standard name -> name in the frame; or table -> such a mapping
CONVERSION_ERRORS = (TypeError, ValueError, OverflowError, AttributeError, pl.exceptions.PolarsError)
UNNAMED_INDEX = r"^__index_level_\d+__$"  # row labels of pandas that have no name
RECBOLE = re.compile(r"(.+):(?:token|token_seq|float|float_seq)")  # "user_id:token"
RECTOOLS = {"datetime": "timestamp", "weight": "value"}  # name of a column of interactions in RecTools -> standard name


def as_frame(frame: object, *, where: str) -> Frame:
    """Return a table of any library as a polars frame.

    Args:
        frame: a polars frame (eager or lazy), a pandas frame (pandas itself is not needed), an Arrow table or any
            other object that exports an Arrow stream, or a mapping from column names to lists or arrays. An index of
            pandas that has a name becomes a column.
        where: the name of the table in messages.

    Raises:
        UserError: a column occurs twice or contains values of several types, columns have different lengths, or the
            object is not a table.

    """
    if isinstance(frame, pl.DataFrame | pl.LazyFrame):
        try:
            frame.collect_schema()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise failed_frame(where, error) from None
        return frame
    names = _column_names(frame)
    if names is None:
        raise UserError(
            f"{where}: is a {type(frame).__name__}; pass a polars or pandas data frame, an Arrow table, or a mapping "
            "from column names to lists"
        )
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{where}: column {name!r} occurs {count} times; rename or drop the others")
    if hasattr(frame, "__arrow_c_stream__"):
        try:
            return pl.DataFrame(cast(Any, frame)).select(pl.exclude(UNNAMED_INDEX))
        except (ImportError, *CONVERSION_ERRORS) as error:
            # pandas may lack pyarrow. If a column is wrong, reading the columns one by one below finds which.
            if not names:
                raise UserError(f"{where}: cannot be read ({_first_line(error)}); pass another kind of frame") from None
    data = cast(Any, frame)
    if hasattr(data, "reset_index") and any(name is not None for name in getattr(data.index, "names", ())):
        data = data.reset_index()
        names = _column_names(data) or []
    columns = [_column(str(name), data[name], where=where) for name in names]
    lengths = {column.name: len(column) for column in columns}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UserError(f"{where}: columns have different lengths ({counts}); give every row a value or None")
    return pl.DataFrame(columns)


def column_renames(
    frames: Mapping[str, Frame], columns: Columns, renames: Mapping[str, Mapping[str, str]], *, name: str
) -> dict[str, dict[str, str]]:
    """Return a mapping from standard name to name in the frame, for each table.

    There are three sources; a later one takes precedence: names of RecTools and RecBole, `renames`, `columns`.

    Args:
        frames: table -> its frame.
        columns: standard name -> name in the frame, for all tables that have the column; or table -> such a mapping.
        renames: table -> the mapping of its settings.
        name: the name of the data set in messages.

    Raises:
        UserError: an entry of `columns` for all tables names a column that no table has, or there is a mapping for a
            table that does not exist. (`frame_table` raises it if an entry for one table names a column that it lacks.)

    """
    per_table = {key: value for key, value in columns.items() if isinstance(value, Mapping)}
    for table in per_table:
        if table not in frames:
            raise UserError(f"{name}: columns has a mapping for {table!r}, but there are {', '.join(frames)}")
    shared_renames = {key: value for key, value in columns.items() if not isinstance(value, Mapping)}
    names = {table: frame.collect_schema().names() for table, frame in frames.items()}
    for standard, actual in shared_renames.items():
        if not any(actual in table_columns for table_columns in names.values()):
            hint = "; it maps our name to yours, not the reverse" if any(standard in n for n in names.values()) else ""
            all_columns = ", ".join(
                dict.fromkeys(column for table_columns in names.values() for column in table_columns)
            )
            raise UserError(
                f"{name}: columns says that {standard!r} is column {actual!r}, but there are {all_columns}{hint}"
            )
    result = {}
    for table, table_columns in names.items():
        explicit = {**renames.get(table, {}), **{s: a for s, a in shared_renames.items() if a in table_columns}}
        explicit |= per_table.get(table, {})
        names_by_standard = _names_of_libraries(table_columns, table)
        renamed_columns = set(explicit.values())
        others = {s: a for s, a in names_by_standard.items() if s not in explicit and a not in renamed_columns}
        result[table] = others | explicit
    return result


def _names_of_libraries(names: Sequence[str], table: str) -> dict[str, str]:
    """Return standard name -> name, for the column names of RecBole ("user_id:token") and RecTools ("datetime")."""
    names_by_standard: dict[str, str] = {}
    # A table of RecTools always has "datetime"; in other tables "weight" may be anything.
    is_rectools = table == "interactions" and "datetime" in names and "timestamp" not in names
    for name in names:
        match = RECBOLE.fullmatch(name)
        standard = match[1] if match else RECTOOLS.get(name) if is_rectools else None
        if standard is not None and standard not in names and standard not in names_by_standard:
            names_by_standard[standard] = name
    return names_by_standard


def _column_names(frame: object) -> list[Any] | None:
    """Return the names of a frame's columns, with repeats, or None if the object is not a frame."""
    if isinstance(frame, Mapping):
        return list(frame)
    for attribute in ("column_names", "columns"):  # Arrow; pandas and others
        names = getattr(frame, attribute, None)
        if names is not None and not callable(names):
            return list(names)
    if hasattr(frame, "__arrow_c_stream__"):
        return []
    return None


def _column(name: str, values: Any, *, where: str) -> pl.Series:
    """Convert a list, an array, or a series of another library to a column."""
    if hasattr(values, "to_numpy"):
        values = values.to_numpy()
    dtype = getattr(values, "dtype", None)
    try:
        if isinstance(values, pl.Series) or (dtype is not None and str(dtype) != "object"):
            return pl.Series(name, values)
        rows = [None if _is_missing(value) else value for value in values]
        _check_one_type(name, rows, where=where)
        types = {type(value) for value in rows if value is not None}
        if types == {int, float}:
            return pl.Series(name, rows, dtype=pl.Float64, strict=False)
        return pl.Series(name, rows, dtype=pl.Int128 if types == {int} and _is_wide(rows) else None)
    except UserError:
        raise
    except CONVERSION_ERRORS as error:
        raise UserError(
            f"{where}: column {name!r} cannot be read ({_first_line(error)}); give values of one type, and ids beyond "
            "128 bits as text"
        ) from None


def _is_wide(values: Sequence[Any]) -> bool:
    """Tell whether an integer does not fit into 64 bits."""
    return any(value is not None and not -(2**63) <= value < 2**63 for value in values)


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _is_missing(value: object) -> bool:
    """Tell whether a value is None, NaN, or the missing value of pandas."""
    return (
        value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)
    )


def _check_one_type(name: str, values: Sequence[object], *, where: str) -> None:
    """Raise UserError if a column contains values of several types, or times with and without a time zone."""
    times = [value for value in values if isinstance(value, datetime)]
    if any((time.tzinfo is None) != (times[0].tzinfo is None) for time in times):
        raise UserError(
            f"{where}: column {name!r}: some times have a time zone and others have none; give all of them one, or none"
        )
    kinds = {_kind(value): type(value).__name__ for value in values if value is not None}
    if len(kinds) > 1:
        raise UserError(
            f"{where}: column {name!r} contains values of several types ({', '.join(sorted(kinds.values()))}); make "
            "all of them text, or all of them numbers"
        )


def _kind(value: object) -> str:
    """Return the kind of a value; values of one kind may be in one column."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "text"
    if isinstance(value, datetime):
        return "time"
    if isinstance(value, bytes):
        return "bytes"
    if isinstance(value, Sequence) or getattr(value, "ndim", None):
        return "list"
    return "number" if hasattr(value, "__float__") else type(value).__name__
