"""Importers of Amazon reviews of 2014 and 2018: lines of JSON or of Python literals, or ratings alone as CSV."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl

from nextitem.core.errors import UserError
from nextitem.data.importers.amazon_products import LOG, REVIEWED_AGAIN, metadata_of, settings, write_products
from nextitem.data.importers.archive import Archive, Member
from nextitem.data.importers.json_lines import id_of, json_rows, number_of, text_of, texts_of, whole_number_of
from nextitem.data.importers.report import Report
from nextitem.data.importers.tables import (
    TableWriter,
    finite_number,
    first_of_each_pair,
    scan_text,
    usable_rows,
    write_lazily,
)

_MARKUP = re.compile(r"<[^>]*>")


def import_amazon_2014(archive: Archive, folder: Path, report: Report, *, name: str) -> dict[str, Any]:
    """Import Amazon 2014: reviews_X.json.gz or ratings_X.csv, and meta_X.json.gz of Python literals.

    Columns of ratings are user, item, rating, time. Returns the settings of dataset.toml.
    """
    log = _log_member(archive, report, "reviews_*.json", "ratings_*.csv")
    return _import(archive, log, folder, report, name=name, columns=["user_id", "item_id", "rating", "timestamp"])


def import_amazon_2018(archive: Archive, folder: Path, report: Report, *, name: str) -> dict[str, Any]:
    """Import Amazon 2018: X.json.gz or X.csv, and meta_X.json.gz of JSON.

    Columns of ratings are item, user, rating, time. Returns the settings of dataset.toml.
    """
    log = _log_member(archive, report, "*.json", "*.csv", "!meta_*")
    return _import(archive, log, folder, report, name=name, columns=["item_id", "user_id", "rating", "timestamp"])


def _log_member(archive: Archive, report: Report, *patterns: str) -> Member:
    """Return the file of reviews; of several, the JSON file, and of several JSON files, the 5-core.

    Raises UserError if that is not a single file.
    """
    logs = archive.find(*patterns)
    for choice in (
        [member for member in logs if member.base.endswith("_5.json")],
        [member for member in logs if member.base.endswith(".json")],
        logs,
    ):
        if len(choice) == 1:
            other_names = [member.name for member in logs if member is not choice[0]]
            if other_names:
                report.note(f"{choice[0].name} was read, {', '.join(other_names)} was not")
            return choice[0]
    names = ", ".join(member.name for member in logs[:5])
    raise UserError(f"{archive.where}: contains the reviews of several categories ({names}); give the files of one")


def _import(
    archive: Archive, log: Member, folder: Path, report: Report, *, name: str, columns: list[str]
) -> dict[str, Any]:
    if log.base.endswith(".csv"):
        _write_ratings(archive, log, folder, report, columns)
    else:
        _write_reviews(archive, log, folder, report)
    first_of_each_pair(folder / "interactions.parquet", report, what=REVIEWED_AGAIN)
    meta = metadata_of(archive, log, "json")
    write_products(archive, meta, folder, report, id_column="asin", product=_product)
    return settings(name, log, has_products=meta is not None)


def _write_reviews(archive: Archive, member: Member, folder: Path, report: Report) -> None:
    """Write interactions.parquet from lines of JSON or of Python literals."""
    num_unusable = 0
    with TableWriter(folder / "interactions.parquet", LOG) as writer:
        for row in json_rows(archive, member, report):
            report.rows += 1
            user, item = id_of(row.get("reviewerID")), id_of(row.get("asin"))
            time = whole_number_of(row.get("unixReviewTime"))
            if user is None or item is None or time is None:
                num_unusable += 1
                continue
            writer.add([user, item, number_of(row.get("overall")), time])
    if not writer.num_rows:
        raise UserError(f"{member.where}: contains no review with reviewerID, asin and unixReviewTime")
    report.note_left_out(num_unusable, "reviews without reviewerID, asin or unixReviewTime")


def _write_ratings(archive: Archive, member: Member, folder: Path, report: Report, columns: list[str]) -> None:
    """Write interactions.parquet from a CSV file without a header, whose columns are `columns`."""
    with archive.file(member) as file:
        frame = scan_text(file, member, columns=columns, has_header=False).select(
            "user_id",
            "item_id",
            finite_number(pl.col("rating")).alias("rating"),
            pl.col("timestamp").cast(pl.Int64, strict=False),
        )
        what = "ratings without user, product, rating or time"
        frame = usable_rows(frame, pl.any_horizontal(pl.all().is_null()), report, what=what, member=member)
        write_lazily(frame, folder / "interactions.parquet", member)


def _product(row: dict[str, Any]) -> list[Any]:
    """Return title, brand, price, categories (the distinct names on all paths, in order) and description."""
    description = row.get("description")
    if isinstance(description, list):
        description = " ".join(texts_of(description))
    categories = texts_of(row.get("categories") or row.get("category"))
    return [
        _without_markup(text_of(row.get("title"))),
        _without_markup(text_of(row.get("brand"))),
        number_of(row.get("price")),
        [name for name in categories if "</span>" not in name],
        _without_markup(text_of(description)),
    ]


def _without_markup(text: str | None) -> str | None:
    """Return a text without markup, which the metadata of 2018 contain."""
    return None if text is None else _MARKUP.sub("", text).strip() or None
