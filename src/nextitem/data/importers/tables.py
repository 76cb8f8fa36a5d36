"""Read and write tables that may be larger than memory: text as lazy frames, Parquet in chunks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import polars as pl
import pyarrow.parquet

from nextitem.core.errors import UserError
from nextitem.data.importers.archive import Member
from nextitem.data.importers.report import Report

Schema = Mapping[str, pl.DataType | type[pl.DataType]]

CHUNK_ROWS = 100_000  # number of rows that are Python objects at a time


class TableWriter:
    """Writer of rows of Python values into a Parquet file, a chunk at a time. Use it with `with`."""

    def __init__(self, file: Path, schema: Schema) -> None:
        self.file, self.schema = file, dict(schema)
        self.num_rows = 0
        self._rows: list[Sequence[Any]] = []
        self._writer: Any = None

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush(last=True)
        if self._writer is not None:
            self._writer.close()

    def add(self, row: Sequence[Any]) -> None:
        """Add a row of values in the order of the schema."""
        self._rows.append(row)
        if len(self._rows) >= CHUNK_ROWS:
            self._flush()

    def _flush(self, *, last: bool = False) -> None:
        """Write the buffered rows; the last call creates the file even if there are no rows."""
        if not self._rows and not (last and self._writer is None):
            return
        table = pl.DataFrame(self._rows, schema=self.schema, orient="row").to_arrow(
            compat_level=pl.CompatLevel.oldest()
        )
        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(self.file, table.schema, compression="zstd")
        self._writer.write_table(table)
        self.num_rows += len(self._rows)
        self._rows = []


def scan_text(
    file: Path,
    member: Member,
    *,
    columns: Sequence[str],
    separator: str = ",",
    has_header: bool = True,
    quote: str | None = '"',
) -> pl.LazyFrame:
    """Scan a file with separators; every column is text, and empty values are null.

    Args:
        file: the file on the disk.
        member: the member that the file is of, for messages.
        columns: with a header, the columns that must be in it; without, the names of all columns.
        separator: the character between two columns.
        has_header: the first line names the columns.
        quote: the character around a value that contains separators; None: there is none.

    Raises:
        UserError: the header lacks one of the columns, or the file cannot be read as such a table.

    """
    try:
        frame = pl.scan_csv(
            file,
            separator=separator,
            has_header=has_header,
            new_columns=None if has_header else list(columns),
            infer_schema=False,
            quote_char=quote,
        )
        column_names = frame.collect_schema().names()
    except pl.exceptions.NoDataError:
        raise UserError(f"{member.where}: the file is empty") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable_table(member, error) from None
    missing_columns = [column for column in columns if column not in column_names]
    if missing_columns:
        raise UserError(
            f"{member.where}: has no column {missing_columns[0]!r}; there are {', '.join(column_names[:12])}"
        )
    return frame.with_columns(pl.when(pl.all() != "").then(pl.all()))


def unreadable_table(member: Member, error: Exception) -> UserError:
    """Return the error for a file that is not a table or ends inside a row, or for a full disk."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "No space left" in reason:
        return UserError(f"there is no space left on the disk of --out for the rows of {member.where}; free some")
    return UserError(f"{member.where}: cannot be read as a table ({reason}); it is truncated, or another file")


def write_lazily(frame: pl.LazyFrame, file: Path, member: Member) -> None:
    """Write the rows of a member to Parquet without loading them into memory; raise UserError if it is damaged."""
    try:
        frame.sink_parquet(file, compression="zstd")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable_table(member, error) from None


def collect_rows(frame: pl.LazyFrame, member: Member) -> pl.DataFrame:
    """Return the rows of a small table, or aggregates; raise UserError that names the member if it is damaged."""
    try:
        return frame.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable_table(member, error) from None


def finite_number(text: pl.Expr) -> pl.Expr:
    """Return text as numbers; null for text that is not a finite number."""
    number = text.cast(pl.Float64, strict=False)
    return pl.when(number.is_finite()).then(number)


def usable_rows(
    frame: pl.LazyFrame, is_unusable: pl.Expr, report: Report, *, what: str, member: Member
) -> pl.LazyFrame:
    """Return the rows that are usable, count all rows in the report, and note the number of the others.

    Args:
        frame: rows of a member.
        is_unusable: true for rows that are left out.
        report: gets the counts.
        what: the unusable rows in words, a plural.
        member: the member, for messages.

    Raises:
        UserError: no row is usable.

    """
    counts = collect_rows(frame.select(pl.len().alias("rows"), is_unusable.sum().alias("unusable")), member)
    num_rows, num_unusable = int(counts["rows"][0]), int(counts["unusable"][0])
    report.log(f"{member.name}: {num_rows:,} rows")
    report.rows += num_rows
    if num_unusable == num_rows:
        raise UserError(f"{member.where}: contains no usable row, but {num_rows:,} {what}")
    report.note_left_out(num_unusable, what)
    return frame.filter(~is_unusable)


def first_of_each_pair(file: Path, report: Report, *, what: str) -> None:
    """Keep only the earliest row of every user and item in a Parquet file with user_id, item_id, timestamp.

    The others are counted as `what` (a plural). Pairs are compared by a 64-bit hash, so that memory does not grow with
    the length of ids.
    """
    keys = pl.scan_parquet(file).select(
        pl.struct("user_id", "item_id").hash(seed=0).alias("pair"), pl.col("timestamp").alias("time")
    )
    is_first = (
        keys.with_row_index("row")
        .sort("time", maintain_order=True)
        .select("row", pl.col("pair").is_first_distinct().alias("first"))
        .sort("row")
        .collect()["first"]
    )
    num_repeated = len(is_first) - int(is_first.sum())
    report.note_left_out(num_repeated, what)
    if not num_repeated:
        return
    shorter_file, start = file.with_name(file.name + ".shorter"), 0
    with (
        pyarrow.parquet.ParquetFile(file) as source,
        pyarrow.parquet.ParquetWriter(shorter_file, source.schema_arrow, compression="zstd") as writer,
    ):
        for batch in source.iter_batches():
            mask = is_first.slice(start, batch.num_rows).to_arrow()
            writer.write_batch(batch.filter(mask))
            start += batch.num_rows
    shorter_file.replace(file)


def distinct_values(file: Path, column: str) -> set[str]:
    """Return the distinct values of a column of a Parquet file."""
    values = pl.scan_parquet(file).select(pl.col(column).unique()).collect(engine="streaming")
    return set(values[column].to_list())


def unique_and_complete(table: pl.DataFrame, id_column: str, log: Path, report: Report, *, where: str) -> pl.DataFrame:
    """Return the table with its first row for each id, and a row of nulls for each id of the log that it lacks.

    Both numbers of rows are noted.
    """
    unique_rows = table.filter(pl.col(id_column).is_not_null()).unique(id_column, keep="first", maintain_order=True)
    report.note_left_out(
        table.height - unique_rows.height, f"rows of {where} without {id_column}, or with one that occurs earlier"
    )
    ids = pl.scan_parquet(log).select(pl.col(id_column).unique()).collect(engine="streaming")
    missing_ids = ids.join(unique_rows.select(id_column), on=id_column, how="anti").drop_nulls().sort(id_column)
    if missing_ids.height:
        report.note(f"{missing_ids.height:,} values of {id_column} in the log are not described in {where}")
    return pl.concat([unique_rows, missing_ids], how="diagonal")


def complete_items(
    ids: Iterable[str], writer: TableWriter, described_ids: set[str], report: Report, *, where: str
) -> None:
    """Add a row of nulls for every item of the log that has no description, and note their number."""
    missing_ids = sorted(set(ids) - described_ids)
    for item in missing_ids:
        writer.add([item, *([None] * (len(writer.schema) - 1))])
    if missing_ids:
        report.note(f"{len(missing_ids):,} items of the log are not described in {where}")
