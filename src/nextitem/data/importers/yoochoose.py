"""Importer of Yoochoose (RecSys Challenge 2015): clicks and buys of anonymous sessions, CSV without a header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from nextitem.data.importers.archive import Archive, Member
from nextitem.data.importers.report import Report
from nextitem.data.importers.tables import (
    finite_number,
    scan_text,
    usable_rows,
    write_lazily,
)

_CLICKS = ["session_id", "timestamp", "item_id", "category"]
_BUYS = ["session_id", "timestamp", "item_id", "price", "quantity"]


def import_yoochoose(archive: Archive, folder: Path, report: Report, *, name: str) -> dict[str, Any]:
    """Import Yoochoose, and return the settings of dataset.toml.

    Files are yoochoose-clicks.dat (session, time, item, category) and yoochoose-buys.dat (session, time, item, price,
    quantity). The category is that of the click ("S" is a special offer), not of the item. A price of 0 means that it
    is unknown.
    """
    clicks, buys = archive.require("yoochoose-clicks.dat"), archive.get("yoochoose-buys.dat")
    parts = [archive.scratch / "clicks.parquet"]
    _write_part(archive, clicks, parts[0], report, columns=_CLICKS, action="click")
    settings: dict[str, Any] = {"repeats": True, "interactions": {"context": {"category": "categorical"}}}
    if buys is None:
        report.note("no yoochoose-buys.dat was given: there are clicks only")
    else:
        rows = report.rows
        parts.append(archive.scratch / "buys.parquet")
        _write_part(archive, buys, parts[1], report, columns=_BUYS, action="buy")
        report.rows = rows  # the published number is that of the clicks
        settings["interactions"]["positive_actions"] = ["click"]
        settings["interactions"]["context"] |= {"price": "numeric", "quantity": "numeric"}
    for member in archive.find("yoochoose-test.dat"):
        report.note(f"{member.name} is left out: its sessions are the test set of the challenge, without their buys")
    rows_of_all = pl.concat([pl.scan_parquet(part) for part in parts], how="diagonal")
    rows_of_all.sink_parquet(folder / "interactions.parquet", compression="zstd")
    return settings


def _write_part(
    archive: Archive, member: Member, part: Path, report: Report, *, columns: list[str], action: str
) -> None:
    """Write the events of one file, all of one action, to the Parquet file `part`."""
    numbers = [name for name in ("price", "quantity") if name in columns]
    with archive.file(member) as file:
        frame = scan_text(file, member, columns=columns, has_header=False).select(
            "session_id",
            "item_id",
            pl.col("timestamp").str.to_datetime("%Y-%m-%dT%H:%M:%S%.fZ", time_unit="ms", strict=False),
            pl.lit(action).alias("action"),
            *([pl.col("category")] if "category" in columns else []),
            *(_zero_as_null(finite_number(pl.col(name))).alias(name) for name in numbers),
        )
        required = [pl.col(name).is_null() for name in ("session_id", "item_id", "timestamp")]
        what = f"{action}s without session, item or time"
        write_lazily(usable_rows(frame, pl.any_horizontal(required), report, what=what, member=member), part, member)


def _zero_as_null(number: pl.Expr) -> pl.Expr:
    """Return the number, or null if it is 0: the files contain 0 for unknown values."""
    return pl.when(number != 0).then(number)
