"""Importer of Amazon reviews of 2023: lines of JSON, ratings alone, or the benchmark's train, valid and test files.

Item ids are the parent_asin, the key of the metadata: the variants of a product are one item.
"""

from __future__ import annotations

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

_COLUMNS = ["user_id", "parent_asin", "rating", "timestamp"]
_PARTS = ("train", "valid", "test")


def import_amazon_2023(archive: Archive, folder: Path, report: Report, *, name: str) -> dict[str, Any]:
    """Import Amazon 2023, and return the settings of dataset.toml.

    Files are X.jsonl(.gz), X.csv(.gz), or X.train/.valid/.test.csv(.gz), with or without histories, and
    meta_X.jsonl(.gz).
    """
    parts = {part: archive.find(f"*.{part}.csv") for part in _PARTS}
    excluded = [f"!*.{part}.csv" for part in _PARTS]
    kinds = {
        "reviews": archive.find("*.jsonl", "!meta_*"),
        "ratings": archive.find("*.csv", *excluded),
        "benchmark": [member for members in parts.values() for member in members],
    }
    kind = _one_kind(archive, kinds)
    log = kinds[kind][0]
    if kind == "benchmark":
        missing_parts = [part for part in _PARTS if len(parts[part]) != 1]
        if missing_parts:
            raise UserError(
                f"{archive.where}: the benchmark of one category is its .train.csv, .valid.csv and .test.csv; there "
                f"are {len(parts[missing_parts[0]])} files .{missing_parts[0]}.csv"
            )
        _write_benchmark(archive, {part: members[0] for part, members in parts.items()}, folder, report)
    else:
        if kind == "reviews":
            _write_reviews(archive, log, folder, report)
        else:
            with archive.file(log) as file:
                write_lazily(_ratings(archive, log, file, report), folder / "interactions.parquet", log)
        first_of_each_pair(folder / "interactions.parquet", report, what=REVIEWED_AGAIN)
    meta = metadata_of(archive, log, "jsonl")
    write_products(archive, meta, folder, report, id_column="parent_asin", product=_product)
    return settings(name, log, has_products=meta is not None)


def _one_kind(archive: Archive, kinds: dict[str, list[Member]]) -> str:
    """Return the kind of the log; raise UserError if there are files of several kinds, or of several categories."""
    present_kinds = [kind for kind, members in kinds.items() if members]
    kind = present_kinds[0]
    if len(present_kinds) > 1 or (kind != "benchmark" and len(kinds[kind]) > 1):
        names = ", ".join(member.name for members in kinds.values() for member in members[:3])
        raise UserError(f"{archive.where}: contains several logs ({names}); give the files of one of them")
    return kind


def _write_reviews(archive: Archive, member: Member, folder: Path, report: Report) -> None:
    """Write interactions.parquet from lines of JSON."""
    num_unusable = 0
    with TableWriter(folder / "interactions.parquet", LOG) as writer:
        for row in json_rows(archive, member, report):
            report.rows += 1
            user, item = id_of(row.get("user_id")), id_of(row.get("parent_asin"))
            time = whole_number_of(row.get("timestamp"))
            if user is None or item is None or time is None:
                num_unusable += 1
                continue
            writer.add([user, item, number_of(row.get("rating")), time])
    if not writer.num_rows:
        raise UserError(f"{member.where}: contains no review with user_id, parent_asin and timestamp")
    report.note_left_out(num_unusable, "reviews without user_id, parent_asin or timestamp")


def _ratings(archive: Archive, member: Member, file: Path, report: Report, *, history: bool = False) -> pl.LazyFrame:
    """Return the rows of a file of ratings; published files have a header, those of the publishers' scripts have none.

    With `history`, the rows have a column of the items of the history, "" if the file has none.
    """
    with archive.stream(member) as stream:
        first = stream.readline(1 << 20).decode("utf-8", errors="replace").strip()
    has_header = first.split(",")[0] == "user_id"
    has_history = first.count(",") == len(_COLUMNS)
    columns = [*_COLUMNS, "history"] if has_history else _COLUMNS
    frame = scan_text(file, member, columns=columns, has_header=has_header).select(
        "user_id",
        pl.col("parent_asin").alias("item_id"),
        finite_number(pl.col("rating")).alias("rating"),
        pl.col("timestamp").cast(pl.Int64, strict=False),
        *([pl.col("history").fill_null("").alias("history") if has_history else pl.lit("").alias("history")] * history),
    )
    what = "ratings without user, product, rating or time"
    return usable_rows(frame, pl.any_horizontal(pl.all().is_null()), report, what=what, member=member)


def _write_benchmark(archive: Archive, parts: dict[str, Member], folder: Path, report: Report) -> None:
    """Write interactions.parquet with the part of the split of each row.

    Histories repeat earlier rows, so they are not imported, only compared with these rows.
    """
    files = []
    for part, member in parts.items():
        with archive.file(member) as file:
            frame = _ratings(archive, member, file, report, history=True).with_columns(split=pl.lit(part))
            files.append(archive.scratch / f"{part}.parquet")
            write_lazily(frame, files[-1], member)
    rows = pl.concat([pl.scan_parquet(file) for file in files])
    rows.drop("history").sink_parquet(folder / "interactions.parquet", compression="zstd")
    length = pl.when(pl.col("history") == "").then(0).otherwise(pl.col("history").str.count_matches(" ") + 1)
    users = rows.group_by("user_id").agg(length.max().alias("longest"), pl.len().alias("events"))
    num_incomplete = users.select((pl.col("longest") >= pl.col("events")).sum()).collect(engine="streaming").item()
    if num_incomplete:
        report.note(
            f"the histories of {num_incomplete:,} users contain items without a row of their own: they are left out, "
            "since nothing but their order is known"
        )
    report.note("the published split is in the column split: use --protocol published")


def _product(row: dict[str, Any]) -> list[Any]:
    """Return title, brand (the brand in the details, else the store), price, categories and description."""
    details = row.get("details")
    brand = text_of(details.get("Brand")) if isinstance(details, dict) else None
    description = row.get("description")
    if isinstance(description, list):
        description = " ".join(texts_of(description))
    return [
        text_of(row.get("title")),
        brand or text_of(row.get("store")),
        number_of(row.get("price")),
        texts_of(row.get("categories")) or texts_of(row.get("main_category")),
        text_of(description),
    ]
