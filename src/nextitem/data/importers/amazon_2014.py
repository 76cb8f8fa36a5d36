"""Amazon reviews of 2014 and 2018: lines of JSON or of Python literals, or ratings alone as text with commas."""

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
    """reviews_X.json.gz or ratings_X.csv (user, item, rating, time), and meta_X.json.gz of Python literals."""
    log = _log_member(archive, report, "reviews_*.json", "ratings_*.csv")
    return _import(archive, log, folder, report, name=name, columns=["user_id", "item_id", "rating", "timestamp"])


def import_amazon_2018(archive: Archive, folder: Path, report: Report, *, name: str) -> dict[str, Any]:
    """X.json.gz or X.csv (item, user, rating, time), and meta_X.json.gz of JSON."""
    log = _log_member(archive, report, "*.json", "*.csv", "!meta_*")
    return _import(archive, log, folder, report, name=name, columns=["item_id", "user_id", "rating", "timestamp"])


def _log_member(archive: Archive, report: Report, *patterns: str) -> Member:
    """The reviews; if several files fit, the JSON, and of them the 5-core; UserError if that is not a single one."""
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
    raise UserError(f"{archive.where}: holds the reviews of several categories ({names}); give the files of one")


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
    unusable = 0
    with TableWriter(folder / "interactions.parquet", LOG) as writer:
        for row in json_rows(archive, member, report):
            report.rows += 1
            user, item = id_of(row.get("reviewerID")), id_of(row.get("asin"))
            time = whole_number_of(row.get("unixReviewTime"))
            if user is None or item is None or time is None:
                unusable += 1
                continue
            writer.add([user, item, number_of(row.get("overall")), time])
    if not writer.num_rows:
        raise UserError(f"{member.where}: holds no review with reviewerID, asin and unixReviewTime")
    report.left_out(unusable, "reviews without reviewerID, asin or unixReviewTime")


def _write_ratings(archive: Archive, member: Member, folder: Path, report: Report, columns: list[str]) -> None:
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
    """Title, brand, price, categories (the distinct names on all paths, in order), description."""
    description = row.get("description")
    if isinstance(description, list):
        description = " ".join(texts_of(description))
    categories = texts_of(row.get("categories") or row.get("category"))
    return [
        _plain(text_of(row.get("title"))),
        _plain(text_of(row.get("brand"))),
        number_of(row.get("price")),
        [name for name in categories if "</span>" not in name],
        _plain(text_of(description)),
    ]


def _plain(text: str | None) -> str | None:
    """Text without markup, of which the metadata of 2018 hold some."""
    return None if text is None else _MARKUP.sub("", text).strip() or None
