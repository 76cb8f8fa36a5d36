"""Online Retail and Online Retail II (UCI): invoice lines of a gift shop, as a workbook or as text with commas."""

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

# Our names, and those of the columns of both data sets, without spaces and in lower case.
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
_EXCEL_EPOCH = 25569  # Excel counts days from 1899-12-30, that many before 1970
_DAY = 86_400_000  # milliseconds


def import_online_retail(archive: Archive, folder: Path, report: Report, *, name: str) -> dict[str, Any]:
    """Online Retail: one sheet, 2010-12-01 to 2011-12-09."""
    return _import(archive, folder, report, name=name)


def import_online_retail_ii(archive: Archive, folder: Path, report: Report, *, name: str) -> dict[str, Any]:
    """Online Retail II: two sheets, 2009-12-01 to 2011-12-09, of which nine days are in both."""
    return _import(archive, folder, report, name=name)


def _import(archive: Archive, folder: Path, report: Report, *, name: str) -> dict[str, Any]:
    """Product lines of registered customers; cancellations (invoices C...) are context."""
    member = archive.require("online*retail*.xlsx") if archive.find("*.xlsx") else archive.require("*.csv")
    lines = _with_values(_read(archive, member, _COLUMNS[name], name), member)
    report.rows += lines.height
    lines = _without_repeated_invoices(lines, report)
    lines = _without(lines, pl.col("user_id").is_null(), report, "lines without a customer")
    # Five digits, perhaps with letters: a product. Postage, fees and manual entries have other codes.
    is_product = pl.col("item_id").str.contains(r"^\d{5}")
    lines = _without(lines, ~is_product.fill_null(False), report, "lines that are no product (postage, fees)")
    lines = _without(lines, pl.col("timestamp").is_null(), report, "lines without a readable date")
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
    """Items with their commonest title, median price and the time of their first line."""
    items = lines.group_by("item_id").agg(
        pl.col("title").str.strip_chars().drop_nulls().mode().sort().first(),
        pl.col("price").median(),
        pl.from_epoch(pl.col("timestamp").min(), time_unit="ms").alias("first_seen"),
    )
    items.sort("item_id").write_parquet(folder / "items.parquet")


def _read(archive: Archive, member: Member, columns: dict[str, str], name: str) -> pl.DataFrame:
    """All lines as text under our names, with the number of the sheet they stand on."""
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
            archive.say(f"{member.name}: {sum(part.height for part in parts):,} lines")
    if not parts:
        raise UserError(f"{member.where}: holds no lines")
    return pl.concat(parts)


def _table(rows: Iterator[list[str | None]], columns: dict[str, str], member: Member, name: str) -> pl.DataFrame | None:
    """The rows under a header; None for an empty sheet. UserError if the header is another one."""
    header = next(rows, None)
    if header is None:
        return None
    names = ["".join((title or "").lower().split()) for title in header]
    missing_titles = [title for title in columns if title not in names]
    if missing_titles:
        other = next((key for key, known in _COLUMNS.items() if set(known) <= set(names)), None)
        hint = f"; this is {other}: nextitem import {other}" if other else ""
        have = ", ".join(title or "" for title in header)
        raise UserError(f"{member.where}: {name} has a column {missing_titles[0]}, and there are {have}{hint}")
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
    """Rows of text with commas, in UTF-8 or, as the copies of this data set mostly are, in Latin-1."""
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
                f"{member.where}: cannot be read as a table ({error}); it is cut off, or another file"
            ) from None


def _with_values(lines: pl.DataFrame, member: Member) -> pl.DataFrame:
    """Times in milliseconds, numbers as numbers, and customers without the ".0" of a number that was once a float."""
    return lines.with_columns(
        pl.col("user_id").str.replace(r"\.0$", ""),
        _milliseconds(lines["timestamp"]).alias("timestamp"),
        pl.col("quantity").cast(pl.Float64, strict=False).cast(pl.Int64),
        pl.col("price").cast(pl.Float64, strict=False),
    )


def _milliseconds(texts: pl.Series) -> pl.Series:
    """Dates as Excel's numbers of days (to the minute), or as text in the form that fits most of them."""
    days = texts.cast(pl.Float64, strict=False)
    if days.null_count() < len(texts):
        return ((days - _EXCEL_EPOCH) * 1440).round().cast(pl.Int64) * 60_000
    forms = [texts.str.to_datetime(form, time_unit="ms", strict=False) for form in _TIME_FORMATS]
    return min(forms, key=lambda times: times.null_count()).cast(pl.Int64)


def _without(lines: pl.DataFrame, mask: pl.Expr, report: Report, what: str) -> pl.DataFrame:
    remaining_lines = lines.filter(~mask)
    report.left_out(lines.height - remaining_lines.height, what)
    return remaining_lines


def _without_repeated_invoices(lines: pl.DataFrame, report: Report) -> pl.DataFrame:
    """Lines of invoices that stand on a later sheet too, or, in one table, again after the dates have fallen back.

    The sheets of Online Retail II overlap by nine days, and a table made of both has these days twice.
    """
    fell_back = (pl.col("timestamp").shift(1) - pl.col("timestamp") > _DAY).fill_null(False)
    blocks = lines.with_columns((pl.col("sheet") + fell_back.cum_sum()).alias("block"))
    last = pl.col("block").max().over("session_id")
    remaining_lines = blocks.filter((pl.col("block") == last) | pl.col("session_id").is_null()).drop("block", "sheet")
    report.left_out(lines.height - remaining_lines.height, "lines of invoices that a later part of the file repeats")
    return remaining_lines
