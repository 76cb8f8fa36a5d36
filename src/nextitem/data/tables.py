"""One table of a data set under the standard column names, with errors that name file, column and row."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

import polars as pl

from nextitem.core.errors import UserError
from nextitem.data.csv_files import as_integers, line_of_row, read_csv

# Endings of data files, including those that cannot be read.
DATA_ENDINGS = (
    *(".csv", ".tsv", ".txt", ".dat", ".inter", ".json", ".jsonl", ".ndjson", ".xls", ".xlsx", ".pkl"),
    *(".parquet", ".feather", ".arrow", ".orc", ".avro", ".gz", ".zip", ".zst", ".bz2", ".xz"),
)
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"  # how Hive and Spark write a missing value in the name of a folder
PARTS_DIFFER = (
    pl.exceptions.SchemaError,
    pl.exceptions.SchemaFieldNotFoundError,
    pl.exceptions.ColumnNotFoundError,
    pl.exceptions.InvalidOperationError,
    pl.exceptions.ShapeError,
)


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of one table, scanned lazily.

    Attributes:
        where: name of the table in messages: the path of the file, or the name of a frame.
        frame: columns under their standard names, rows in their order.
        csv_path: path of the file, if it is CSV: messages then name lines too.
        renamed: standard name -> name in the file, for columns that have another name there.
        settings: name of the place of settings in messages.
        notes: what reading changed, skipped or assumed, in words; checks append to it.

    """

    where: str
    frame: pl.LazyFrame
    csv_path: Path | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    settings: str = "dataset.toml"
    notes: list[str] = field(default_factory=list)

    @property
    def is_file(self) -> bool:
        """Tell whether the table was read from a file, and not from a frame in memory."""
        return self.settings == "dataset.toml"

    @cached_property
    def schema(self) -> pl.Schema:
        """Return the column names and types."""
        return self.frame.collect_schema()

    def __contains__(self, column: str) -> bool:
        return column in self.schema

    def collect(self, *columns: pl.Expr | str) -> pl.DataFrame:
        """Return columns or aggregates, computed in one streaming pass."""
        try:
            return self.frame.select(*columns).collect(engine="streaming")
        except (pl.exceptions.PolarsError, OSError) as error:
            raise self._unreadable(error) from None

    def all_columns(self, changed_columns: list[pl.Expr]) -> pl.DataFrame:
        """Return the whole table, with the columns `changed` replaced or added."""
        try:
            return self.frame.with_columns(changed_columns).collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise self._unreadable(error) from None

    def batches(self, columns: list[pl.Expr], *, rows: int) -> Iterator[pl.DataFrame]:
        """Yield columns in the order of the rows, about `rows` rows at a time."""
        try:
            yield from self.frame.select(columns).collect_batches(
                chunk_size=rows, maintain_order=True, engine="streaming"
            )
        except (pl.exceptions.PolarsError, OSError) as error:
            raise self._unreadable(error) from None

    def first_row(self, is_wrong: pl.Expr) -> int | None:
        """Return the number (from 1) of the first row for which `is_wrong` is true, or None if there is none."""
        # Most checks pass: the first pass streams, and only the second needs row numbers.
        if not self.collect(is_wrong.any().alias("any"))["any"][0]:
            return None
        return int(self.collect(pl.arg_where(is_wrong).first().alias("row"))["row"][0]) + 1

    def count(self, condition: pl.Expr) -> int:
        """Return the number of rows for which `condition` is true."""
        return int(self.collect(condition.sum().alias("count"))["count"][0] or 0)

    def value(self, column: str, row: int) -> object:
        """Return the value of a column in a row (from 1)."""
        return self.frame.select(column).slice(row - 1, 1).collect()[column][0]

    def note(self, text: str) -> None:
        """Add a note about this table: a sentence without a full stop."""
        self.notes.append(f"{self.where}: {text}")

    def own_name(self, column: str) -> str:
        """Return the name that a column has in the owner's file."""
        return self.renamed.get(column, column)

    def require(self, *columns: str) -> None:
        """Raise UserError unless the table has all of the columns."""
        for column in columns:
            if column not in self:
                raise self.lacks(column)

    def lacks(self, column: str) -> UserError:
        """Return the error for a missing column."""
        names = [self.own_name(name) for name in self.schema]
        mapping = f'rename = {{ {column} = "<its name here>" }} in dataset.toml'
        if not self.is_file:
            mapping = f'columns={{"{column}": "<its name here>"}}'
        return UserError(
            f"{self.where}: column {column!r} is missing, there are {', '.join(names)}; add it, or set {mapping}"
        )

    def _unreadable(self, error: Exception) -> UserError:
        """Return the error for a table that cannot be read."""
        return unreadable(self.where, error) if self.is_file else failed_frame(self.where, error)

    def problem(self, column: str, what: str, remedy: str, *, row: int | None = None) -> UserError:
        """Return the error for a column, or for one row (from 1) of it.

        Args:
            column: the standard name of the column.
            what: what is wrong.
            remedy: the way out.
            row: number of the row, from 1; None: the message names no row.

        """
        name = self.own_name(column)
        place = f"column {name!r}" if name == column else f"column {name!r} ({column})"
        if row is not None:
            line = "" if self.csv_path is None else f" (line {line_of_row(self.csv_path, row)})"
            place += f", row {row}{line}"
        return UserError(f"{self.where}: {place}: {what}; {remedy}")


@contextmanager
def reading(where: str | Path) -> Iterator[None]:
    """Turn errors of the operating system into a UserError of one line."""
    try:
        yield
    except OSError as error:
        raise unreadable(str(where), error) from None


def find_table(folder: Path, name: str, *, rename: Mapping[str, str]) -> Table | None:
    """Open folder/name.parquet or folder/name.csv; return None if neither exists, raise UserError if both exist."""
    parquet, text = folder / f"{name}.parquet", folder / f"{name}.csv"
    # A link to a missing file is a mistake, not a missing table: lexists finds such links.
    with reading(folder):
        has_parquet, has_text = os.path.lexists(parquet), os.path.lexists(text)
    if has_parquet and has_text:
        raise UserError(f"{folder}: contains both {parquet.name} and {text.name}; remove one of them")
    if has_parquet:
        with reading(parquet):
            return _under_standard_names(Table(str(parquet), _scan_parquet(parquet)), rename)
    if has_text:
        with reading(text):
            if text.is_dir():
                raise UserError(f"{text}: is a folder; write one CSV file with a header, or Parquet")
            frame, notes = read_csv(text)
        return _under_standard_names(Table(str(text), frame.lazy(), csv_path=text, notes=notes), rename)
    return None


def unread_files(folder: Path, name: str) -> list[str]:
    """Return the names of files that seem to be the table but are not read: other formats, compressed, other case."""
    with reading(folder):
        names = sorted(entry.name for entry in folder.iterdir())
    return [
        file
        for file in names
        if file.lower().split(".")[0] == name
        and file.lower().endswith(DATA_ENDINGS)
        and file not in (f"{name}.parquet", f"{name}.csv")
    ]


def frame_table(where: str, frame: pl.DataFrame | pl.LazyFrame, *, rename: Mapping[str, str]) -> Table:
    """Return the table of a frame in memory; `where` is its name in messages."""
    return _under_standard_names(Table(where, frame.lazy(), settings="settings"), rename)


def unreadable(where: str, error: Exception) -> UserError:
    """Return the error for a table that cannot be read."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    if isinstance(error, PermissionError):
        return UserError(f"{where}: may not be read ({reason}); give your account the right to read it")
    if isinstance(error, FileNotFoundError):
        return UserError(f"{where}: is missing, or a link to a file that is missing; write it, or remove the link")
    if isinstance(error, OSError) and error.errno is not None:
        return UserError(f"{where}: cannot be read ({reason}); put it where it can be read")
    if isinstance(error, PARTS_DIFFER):
        return UserError(
            f"{where}: its parts do not have the same columns of the same types ({reason}); write all of them again"
        )
    return UserError(f"{where}: cannot be read ({reason}); it is truncated or damaged, write it again")


def failed_frame(where: str, error: Exception) -> UserError:
    """Return the error for a lazy frame that cannot be computed."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{where}: the frame cannot be computed ({reason}); correct its source")


def _under_standard_names(table: Table, rename: Mapping[str, str]) -> Table:
    """Return the table with renamed columns; raise UserError if a column is missing or has two names."""
    setting, remedy = ("rename", "correct dataset.toml")
    if not table.is_file:
        setting, remedy = ("columns", "correct it: it maps our name to yours")
    for standard, actual in rename.items():
        if actual not in table:
            raise UserError(
                f"{table.where}: {setting} says that {standard!r} is column {actual!r}, "
                f"but there are {', '.join(table.schema)}; {remedy}"
            )
        if standard in table and standard not in rename.values():
            raise UserError(
                f"{table.where}: {setting} says that {standard!r} is column {actual!r}, "
                f"but there is a column {standard!r} too; drop one of them"
            )
    for actual, count in Counter(rename.values()).items():
        if count > 1:
            names = ", ".join(repr(standard) for standard, other in rename.items() if other == actual)
            raise UserError(f"{table.where}: {setting} says that {names} are all column {actual!r}; {remedy}")
    frame = table.frame.rename({actual: standard for standard, actual in rename.items()})
    renamed = {standard: actual for standard, actual in rename.items() if standard != actual}
    return Table(table.where, frame, table.csv_path, renamed, table.settings, table.notes)


def _scan_parquet(path: Path) -> pl.LazyFrame:
    """Scan a Parquet file, or a folder of part files as Spark, Hive and others write one."""
    try:
        if not path.is_dir():
            with path.open("rb"):  # raises the error of the operating system; the scan would report a damaged file
                pass
            frame = _scan_files([path])
        else:
            frame = _scan_folder(path)
        frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(str(path), error) from None
    return frame


def _scan_files(files: list[Path]) -> pl.LazyFrame:
    """Scan Parquet files; names are not patterns, and folders above the table are not partitions."""
    return pl.scan_parquet(files, glob=False, hive_partitioning=False)


def _scan_folder(folder: Path) -> pl.LazyFrame:
    """Scan all part files of a folder in the order of their paths; folders named key=value add a column `key`.

    Files and folders whose names begin with "_" or "." (_SUCCESS, checksums) are not read.
    """
    if (folder / "_delta_log").exists():
        raise UserError(f"{folder}: is a Delta table, which may contain deleted rows; write it as plain Parquet")
    partitions: dict[tuple[tuple[str, str], ...], list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        if any(part.startswith(("_", ".")) for part in inside.parts) or file.is_dir():
            continue
        with file.open("rb") as content:
            if content.read(4) != b"PAR1":
                raise UserError(f"{folder}: {inside} in it is no Parquet file; move it away or write the table again")
        pairs = tuple(tuple(unquote(name).split("=", 1)) for name in inside.parts[:-1] if "=" in name)
        partitions.setdefault(pairs, []).append(file)  # type: ignore[arg-type]
    if not partitions:
        raise UserError(f"{folder}: is a folder without Parquet files; write the table into it, or remove it")
    keys = [tuple(key for key, _ in pairs) for pairs in partitions]
    if any(key != keys[0] for key in keys):
        raise UserError(f"{folder}: its folders key=value are not all of the same keys; write the table again")
    values = {
        key: as_integers(
            pl.Series(key, [dict(pairs)[key] for pairs in partitions]).replace({NO_PARTITION: None, "": None})
        )
        for key in keys[0]
    }
    parts = [
        _scan_files(files).with_columns(
            pl.lit(column[place], column.dtype).alias(key) for key, column in values.items()
        )
        for place, files in enumerate(partitions.values())
    ]
    return parts[0] if len(parts) == 1 else pl.concat(parts)
