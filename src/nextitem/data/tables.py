"""Table: one file of a data set under the standard column names, with errors that say where."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import polars as pl

from nextitem.core.errors import UserError

ID_COLUMNS = ("user_id", "session_id", "item_id", "impression_id")


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of one table, scanned lazily.

    where     what messages call it: the file's path
    frame     its columns under their standard names, rows in the file's order
    csv_path  the file, where it is CSV: messages then name lines too
    renamed   standard name -> name in the file, where they differ
    """

    where: str
    frame: pl.LazyFrame
    csv_path: Path | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def schema(self) -> pl.Schema:
        """Column names and types."""
        return self.frame.collect_schema()

    def __contains__(self, column: str) -> bool:
        return column in self.schema

    def collect(self, *columns: pl.Expr | str) -> pl.DataFrame:
        """The given columns or aggregates, read in one streaming pass."""
        try:
            return self.frame.select(*columns).collect(engine="streaming")
        except (pl.exceptions.PolarsError, OSError) as error:
            raise unreadable(self.where, error) from None

    def batches(self, columns: list[pl.Expr], *, rows: int) -> Iterator[pl.DataFrame]:
        """The given columns in order, about `rows` rows at a time."""
        try:
            yield from self.frame.select(columns).collect_batches(
                chunk_size=rows, maintain_order=True, engine="streaming"
            )
        except (pl.exceptions.PolarsError, OSError) as error:
            raise unreadable(self.where, error) from None

    def first_row(self, wrong: pl.Expr) -> int | None:
        """The 1-based number of the first row where `wrong` holds."""
        # Most checks find nothing: the first pass streams, only the second needs row numbers.
        if not self.collect(wrong.any().alias("any"))["any"][0]:
            return None
        return int(self.collect(pl.arg_where(wrong).first().alias("row"))["row"][0]) + 1

    def value(self, column: str, row: int) -> object:
        """What stands in a column of a 1-based row."""
        return self.frame.select(column).slice(row - 1, 1).collect()[column][0]

    def require(self, *columns: str) -> None:
        """UserError unless the table has all of the columns."""
        missing = [column for column in columns if column not in self]
        if missing:
            raise self.lacks(missing[0])

    def lacks(self, column: str) -> UserError:
        """The error of a missing column."""
        have = [self.renamed.get(name, name) for name in self.schema]
        hint = f'add it, or say rename = {{ {column} = "<its name here>" }} in dataset.toml'
        if len(have) == 1 and any(mark in have[0] for mark in ";\t|"):
            hint = "the file seems to be separated by another mark than the comma; write it with commas"
        return UserError(f"{self.where}: column {column!r} is missing, there are {', '.join(have)}; {hint}")

    def problem(self, column: str, what: str, remedy: str, *, row: int | None = None) -> UserError:
        """The error of a column, or of one row (1-based) in it."""
        name = self.renamed.get(column, column)
        place = f"column {name!r}" if name == column else f"column {name!r} ({column})"
        if row is not None:
            line = "" if self.csv_path is None else f" (line {_line_of(self.csv_path, row)})"
            place += f", row {row}{line}"
        return UserError(f"{self.where}: {place}: {what}; {remedy}")


def find_table(folder: Path, name: str, *, rename: Mapping[str, str]) -> Table | None:
    """Opens folder/name.parquet or folder/name.csv; None where there is neither, UserError where both."""
    parquet, text = folder / f"{name}.parquet", folder / f"{name}.csv"
    if parquet.exists() and text.exists():
        raise UserError(f"{folder}: holds both {parquet.name} and {text.name}; remove one of them")
    if parquet.exists():
        return _under_standard_names(Table(str(parquet), _scan_parquet(parquet)), rename)
    if text.exists():
        return _under_standard_names(Table(str(text), _read_csv(text).lazy(), csv_path=text), rename)
    return None


def frame_table(where: str, frame: pl.DataFrame | pl.LazyFrame, *, rename: Mapping[str, str]) -> Table:
    """A table of a frame in memory; `where` is what messages call it."""
    return _under_standard_names(Table(where, frame.lazy()), rename)


def unreadable(where: str, error: Exception) -> UserError:
    """The error of a file that cannot be decoded."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{where}: cannot be read ({reason}); it is truncated or damaged, write it again")


def _under_standard_names(table: Table, rename: Mapping[str, str]) -> Table:
    for standard, actual in rename.items():
        if actual not in table:
            raise UserError(
                f"{table.where}: rename says that {standard!r} is column {actual!r}, "
                f"but there are {', '.join(table.schema)}; correct dataset.toml"
            )
        if standard in table and standard != actual:
            raise UserError(
                f"{table.where}: rename says that {standard!r} is column {actual!r}, "
                f"but there is a column {standard!r} too; drop one of them"
            )
    frame = table.frame.rename({actual: standard for standard, actual in rename.items()})
    return Table(table.where, frame, csv_path=table.csv_path, renamed=dict(rename))


def _scan_parquet(path: Path) -> pl.LazyFrame:
    try:
        frame = pl.scan_parquet(path)
        frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(str(path), error) from None
    return frame


def _read_csv(path: Path) -> pl.DataFrame:
    """Reads everything as text, then gives each column the narrowest type that loses nothing.

    A column of whole numbers is one of integers only if every value prints the same again, over the whole
    file: "00123" keeps its zeros, and ids beyond 64 bits stay text.
    """
    with path.open("rb") as file:
        try:
            file.readline().decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{path}: line 1, the header: not UTF-8 text; save the file as UTF-8") from None
    try:
        frame = pl.read_csv(path, infer_schema=False)
    except pl.exceptions.NoDataError:
        raise UserError(f"{path}: the file is empty; the first line must name the columns") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _csv_problem(path, error) from None
    if frame.width:
        # Lines without a value are no rows; _records counts in the same way.
        frame = frame.filter(pl.any_horizontal(pl.all().is_not_null() & (pl.all() != "")))
    return frame.select(_narrowed(column) for column in frame)


def _narrowed(text: pl.Series) -> pl.Series:
    text = text.set(text == "", None)
    if text.null_count() == len(text):
        return text
    whole = text.cast(pl.Int64, strict=False)
    if whole.null_count() == text.null_count() and bool((whole.cast(pl.String) == text).all()):
        return whole
    if text.name in ID_COLUMNS:
        return text
    number = text.cast(pl.Float64, strict=False)
    return number if number.null_count() == text.null_count() and _is_plain(text) else text


def _is_plain(text: pl.Series) -> bool:
    """Numbers without leading zeros: postcodes and article numbers are not quantities."""
    return not bool(text.str.contains(r"^[+-]?0\d").any())


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV file with the line that each begins on; bytes that are no UTF-8 are kept."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file)
        line = 1
        for record in reader:
            if any(record):
                yield line, record
            line = reader.line_num + 1


def _line_of(path: Path, row: int) -> int:
    for number, (line, _) in enumerate(_records(path)):
        if number == row:
            return line
    raise AssertionError(f"{path} has no row {row}")


def _csv_problem(path: Path, error: Exception) -> UserError:
    """The error of the first record that is not UTF-8 or has too many fields, else of the reader's."""
    header: list[str] = []
    for row, (line, record) in enumerate(_records(path)):
        header = header or record
        for column, value in enumerate(record):
            if any("\udc80" <= letter <= "\udcff" for letter in value):
                name = header[column] if column < len(header) else str(column + 1)
                return UserError(
                    f"{path}: column {name!r}, row {row} (line {line}): not UTF-8 text; save the file as UTF-8"
                )
        if len(record) > len(header):
            return UserError(
                f"{path}: row {row} (line {line}) has {len(record)} fields, the header has {len(header)}; "
                "put quotes around values that hold a comma"
            )
    reason = str(error).splitlines()[0]
    return UserError(f"{path}: not a well-formed CSV file ({reason}); close every quote, and save it as UTF-8")
