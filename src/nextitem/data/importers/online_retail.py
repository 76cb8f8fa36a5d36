"""Importers of Online Retail and Online Retail II (UCI): invoice lines of a gift shop, as a workbook or CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from nextitem.core.errors import UserError
from nextitem.data.importers.archive import Archive, Member
from nextitem.data.importers.report import Report
from nextitem.data.importers.tables import CHUNK_ROWS
from nextitem.data.importers.workbook import sheets

# Names of the columns of both data sets, without spaces and in lower case -> standard names.
_COLUMNS = {
    "online-retail": {
        "invoiceno": "session_id",
        "stockcode": "item_id",
        "description": "title",
        "quantity": "quantity",
        "invoicedate": "timestamp",
        "unitprice": "price",
        "customerid": "user_id",
        "country": "country",
    },
    "online-retail-ii": {
        "invoice": "session_id",
        "stockcode": "item_id",
        "description": "title",
        "quantity": "quantity",
        "invoicedate": "timestamp",
        "price": "price",
        "customerid": "user_id",
        "country": "country",
    },
}
_TIME_FORMATS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M", "%d-%m-%Y %H:%M")
_EXCEL_EPOCH = 25569  # days from 1899-12-30, from which Excel counts, to 1970-01-01
_DAY = 86_400_000  # milliseconds


def import_online_retail(archive: Archive, folder: Path, report: Report, *, name: str) -> dict[str, Any]:
    """Import Online Retail: one sheet, 2010-12-01 to 2011-12-09. Returns the settings of dataset.toml."""
    return _import(archive, folder, report, name=name)


def import_online_retail_ii(archive: Archive, folder: Path, report: Report, *, name: str) -> dict[str, Any]:
    """Import Online Retail II: two sheets, 2009-12-01 to 2011-12-09; nine days are in both sheets.

    Returns the settings of dataset.toml.
    """
    return _import(archive, folder, report, name=name)


def _import(archive: Archive, folder: Path, report: Report, *, name: str) -> dict[str, Any]:
    """Import the product lines of registered customers; cancellations (invoices C...) are context.

    Returns the settings of dataset.toml.
    """
    member = archive.require("online*retail*.xlsx") if archive.find("*.xlsx") else archive.require("*.csv")
    lines = _parse_values(_read(archive, member, _COLUMNS[name], name), member)
    report.rows += lines.height
    lines = _drop_repeated_invoices(lines, report)
    lines = _drop_lines(lines, pl.col("user_id").is_null(), report, "lines without a customer")
    # Five digits, perhaps with letters: a product. Postage, fees and manual entries have other codes.
    is_product = pl.col("item_id").str.contains(r"^\d{5}")
    lines = _drop_lines(lines, ~is_product.fill_null(False), report, "lines that are no product (postage, fees)")
    lines = _drop_lines(lines, pl.col("timestamp").is_null(), report, "lines without a readable date")
    action = pl.when(pl.col("session_id").str.starts_with("C")).then(pl.lit("cancel")).otherwise(pl.lit("purchase"))
    log = lines.select("user_id", "item_id", "timestamp", action.alias("action"), "session_id", "quantity", "price")
    log.write_parquet(folder / "interactions.parquet")
    _write_items(lines, folder)
    people = lines.group_by("user_id").agg(pl.col("country").first())
    people.sort("user_id").write_parquet(folder / "users.parquet")
    return {
        "repeats": True,
        "interactions": {"positive_actions": ["purchase"], "context": {"quantity": "numeric", "price": "numeric"}},
        "items": {"text": "{title}", "features": {"price": "numeric"}, "released": "first_seen"},
        "users": {"features": {"country": "categorical"}},
    }


def _write_items(lines: pl.DataFrame, folder: Path) -> None:
    """Write items.parquet: the most frequent title, the median price and the time of the first line of each item."""
    items = lines.group_by("item_id").agg(
        pl.col("title").str.strip_chars().drop_nulls().mode().sort().first(),
        pl.col("price").median(),
        pl.from_epoch(pl.col("timestamp").min(), time_unit="ms").alias("first_seen"),
    )
    items.sort("item_id").write_parquet(folder / "items.parquet")


def _read(archive: Archive, member: Member, columns: dict[str, str], name: str) -> pl.DataFrame:
    """Return all lines as text under the standard names, with the number of their sheet."""
    with archive.file(member) as file:
        if member.base.endswith(".csv"):
            tables: Iterator[Iterator[list[str | None]]] = iter([_csv_rows(archive, member)])
        else:
            tables = sheets(file, where=member.where)
        parts = []
        for number, rows in enumerate(tables):
            part = _table(rows, columns, member, name)
            if part is not None:
                parts.append(part.with_columns(sheet=pl.lit(number, dtype=pl.Int32)))
            archive.log(f"{member.name}: {sum(part.height for part in parts):,} lines")
    if not parts:
        raise UserError(f"{member.where}: contains no lines")
    return pl.concat(parts)


def _table(rows: Iterator[list[str | None]], columns: dict[str, str], member: Member, name: str) -> pl.DataFrame | None:
    """Return the rows below a header, or None for an empty sheet; raise UserError if the header is another one."""
    header = next(rows, None)
    if header is None:
        return None
    names = ["".join((title or "").lower().split()) for title in header]
    missing_titles = [title for title in columns if title not in names]
    if missing_titles:
        other = next((key for key, titles in _COLUMNS.items() if set(titles) <= set(names)), None)
        hint = f"; this is {other}: nextitem import {other}" if other else ""
        header_text = ", ".join(title or "" for title in header)
        raise UserError(f"{member.where}: {name} has a column {missing_titles[0]}, and there are {header_text}{hint}")
    positions = [names.index(title) for title in columns]
    schema = dict.fromkeys(columns.values(), pl.String)
    parts, chunk = [pl.DataFrame(schema=schema)], []
    for row in rows:
        chunk.append([row[position] if position < len(row) else None for position in positions])
        if len(chunk) == CHUNK_ROWS:
            parts.append(pl.DataFrame(chunk, schema=schema, orient="row"))
            chunk = []
    parts.append(pl.DataFrame(chunk, schema=schema, orient="row"))
    return pl.concat(parts)


def _csv_rows(archive: Archive, member: Member) -> Iterator[list[str | None]]:
    """Yield the rows of a CSV file in UTF-8 or in Latin-1, the encoding of most copies of this data set."""
    for encoding in ("utf-8-sig", "latin-1"):
        with archive.text(member, encoding) as text:
            try:
                while text.read(1 << 20):
                    pass
            except UnicodeDecodeError:
                continue
        break
    with archive.text(member, encoding) as text:
        try:
            for row in csv.reader(text, strict=True):
                yield [value if value != "" else None for value in row]
        except csv.Error as error:
            raise UserError(
                f"{member.where}: cannot be read as a table ({error}); it is truncated, or another file"
            ) from None


def _parse_values(lines: pl.DataFrame, member: Member) -> pl.DataFrame:
    """Parse times to milliseconds and numbers to numbers, and remove the ".0" of customer ids that were once floats."""
    return lines.with_columns(
        pl.col("user_id").str.replace(r"\.0$", ""),
        _milliseconds(lines["timestamp"]).alias("timestamp"),
        pl.col("quantity").cast(pl.Float64, strict=False).cast(pl.Int64),
        pl.col("price").cast(pl.Float64, strict=False),
    )


def _milliseconds(texts: pl.Series) -> pl.Series:
    """Return dates in milliseconds since 1970, from Excel's numbers of days (rounded to minutes) or from text.

    Text is parsed by the format that most dates match.
    """
    days = texts.cast(pl.Float64, strict=False)
    if days.null_count() < len(texts):
        return ((days - _EXCEL_EPOCH) * 1440).round().cast(pl.Int64) * 60_000
    forms = [texts.str.to_datetime(form, time_unit="ms", strict=False) for form in _TIME_FORMATS]
    return min(forms, key=lambda times: times.null_count()).cast(pl.Int64)


def _drop_lines(lines: pl.DataFrame, mask: pl.Expr, report: Report, what: str) -> pl.DataFrame:
    """Return the lines that are not in the mask, and note how many lines (`what`, a plural) were dropped."""
    remaining_lines = lines.filter(~mask)
    report.note_left_out(lines.height - remaining_lines.height, what)
    return remaining_lines


def _drop_repeated_invoices(lines: pl.DataFrame, report: Report) -> pl.DataFrame:
    """Drop lines of invoices that a later sheet contains too, or a later part of a table that joins both sheets.

    The sheets of Online Retail II overlap by nine days. In a table that joins both sheets these days occur twice: the
    dates go back at the place where the second sheet begins.
    """
    goes_back = (pl.col("timestamp").shift(1) - pl.col("timestamp") > _DAY).fill_null(False)
    blocks = lines.with_columns((pl.col("sheet") + goes_back.cum_sum()).alias("block"))
    last = pl.col("block").max().over("session_id")
    remaining_lines = blocks.filter((pl.col("block") == last) | pl.col("session_id").is_null()).drop("block", "sheet")
    report.note_left_out(
        lines.height - remaining_lines.height, "lines of invoices that a later part of the file repeats"
    )
    return remaining_lines
