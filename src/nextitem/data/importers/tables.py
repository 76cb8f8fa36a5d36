"""Tables that may be larger than memory: text with separators as lazy frames, Parquet written in chunks."""

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

CHUNK_ROWS = 100_000  # rows held as Python objects at a time


class TableWriter:
    """Writes rows of Python values into a Parquet file, a chunk at a time. Use it with `with`."""

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
        """Add a row; its values in the order of the schema."""
        self._rows.append(row)
        if len(self._rows) >= CHUNK_ROWS:
            self._flush()

    def _flush(self, *, last: bool = False) -> None:
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
    """The rows of a file with separators, every column as text; empty values are null.

    With a header, `columns` are those that must be in it; without, they are the names of all columns. UserError if the
    header lacks one of them or the file cannot be read as such a table.
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
        have = frame.collect_schema().names()
    except pl.exceptions.NoDataError:
        raise UserError(f"{member.where}: the file is empty") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable_table(member, error) from None
    missing_columns = [column for column in columns if column not in have]
    if missing_columns:
        raise UserError(f"{member.where}: has no column {missing_columns[0]!r}; there are {', '.join(have[:12])}")
    return frame.with_columns(pl.when(pl.all() != "").then(pl.all()))


def unreadable_table(member: Member, error: Exception) -> UserError:
    """The error of a file that is no table, or ends inside a row, or of a disk that is full."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "No space left" in reason:
        return UserError(f"there is no space left on the disk of --out for what is in {member.where}; free some")
    return UserError(f"{member.where}: cannot be read as a table ({reason}); it is cut off, or another file")


def write_lazily(frame: pl.LazyFrame, file: Path, member: Member) -> None:
    """Write the rows of a member to Parquet without holding them in memory; UserError at damage."""
    try:
        frame.sink_parquet(file, compression="zstd")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable_table(member, error) from None


def collected(frame: pl.LazyFrame, member: Member) -> pl.DataFrame:
    """The rows of a small table, or aggregates, in memory; UserError that names the member at damage."""
    try:
        return frame.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable_table(member, error) from None


def finite_number(text: pl.Expr) -> pl.Expr:
    """Text as numbers; null for what is no number, or not a finite one."""
    number = text.cast(pl.Float64, strict=False)
    return pl.when(number.is_finite()).then(number)


def usable_rows(
    frame: pl.LazyFrame, is_unusable: pl.Expr, report: Report, *, what: str, member: Member
) -> pl.LazyFrame:
    """The rows for which `is_unusable` does not hold; the others are counted as `what`. UserError if no row is left."""
    counts = collected(frame.select(pl.len().alias("rows"), is_unusable.sum().alias("unusable")), member)
    num_rows, num_unusable = int(counts["rows"][0]), int(counts["unusable"][0])
    report.say(f"{member.name}: {num_rows:,} rows")
    report.rows += num_rows
    if num_unusable == num_rows:
        raise UserError(f"{member.where}: holds no usable row, but {num_rows:,} {what}")
    report.left_out(num_unusable, what)
    return frame.filter(~is_unusable)


def first_of_each_pair(file: Path, report: Report, *, what: str) -> None:
    """Keep the earliest row of every user and item in a Parquet file with user_id, item_id, timestamp.

    The others are counted as `what`. Pairs are told apart by a 64-bit hash, so that memory does not grow with the
    length of ids.
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
    report.left_out(num_repeated, what)
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
    """The distinct values of a column of a Parquet file."""
    values = pl.scan_parquet(file).select(pl.col(column).unique()).collect(engine="streaming")
    return set(values[column].to_list())


def unique_and_complete(table: pl.DataFrame, id_column: str, log: Path, report: Report, *, where: str) -> pl.DataFrame:
    """A table with one row for each id (the first), and a row of nulls for ids of the log that it lacks; both noted."""
    unique_rows = table.filter(pl.col(id_column).is_not_null()).unique(id_column, keep="first", maintain_order=True)
    report.left_out(
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
    """Add a row of nulls for every item of the log that has no description, and note how many there are."""
    missing_ids = sorted(set(ids) - described_ids)
    for item in missing_ids:
        writer.add([item, *([None] * (len(writer.schema) - 1))])
    if missing_ids:
        report.note(f"{len(missing_ids):,} items of the log are not described in {where}")
