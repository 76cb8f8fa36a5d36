"""Importer of Diginetica (CIKM Cup 2016): views and purchases of anonymous sessions, text with semicolons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from nextitem.data.importers.archive import Archive, Member
from nextitem.data.importers.report import Report
from nextitem.data.importers.tables import (
    collect_rows,
    finite_number,
    scan_text,
    usable_rows,
    write_lazily,
)

_DAY = 86_400_000  # milliseconds
_NAMES = {"sessionid": "session_id", "itemid": "item_id", "categoryid": "category", "pricelog2": "price_log2"}


def import_diginetica(archive: Archive, folder: Path, report: Report, *, name: str) -> dict[str, Any]:
    """Import Diginetica, and return the settings of dataset.toml.

    Files are train-item-views.csv and train-purchases.csv, products.csv and product-categories.csv. A time is the day
    of the event plus `timeframe`, milliseconds since the session began. Most rows have no user, so the log is one of
    anonymous sessions.
    """
    views, purchases = archive.require("train-item-views.csv"), archive.get("train-purchases.csv")
    parts = [archive.scratch / "views.parquet"]
    _write_part(archive, views, parts[0], report, action="view")
    settings: dict[str, Any] = {"repeats": True}
    if purchases is None:
        report.note("no train-purchases.csv was given: there are views only")
    else:
        rows = report.rows
        parts.append(archive.scratch / "purchases.parquet")
        _write_part(archive, purchases, parts[1], report, action="purchase")
        report.rows = rows  # the published number is that of the views
        settings["interactions"] = {"positive_actions": ["view"]}
    pl.concat([pl.scan_parquet(part) for part in parts]).sink_parquet(folder / "interactions.parquet")
    report.note("userId is left out: most rows have none")
    unread_names = [member.name for member in archive.find("train-queries.csv", "train-clicks.csv")]
    if unread_names:
        report.note(f"{', '.join(unread_names)}: left out, searches are not imported")
    return settings | _write_items(archive, folder, report)


def _write_part(archive: Archive, member: Member, part: Path, report: Report, *, action: str) -> None:
    """Write the events of one file, all of one action, to the Parquet file `part`."""
    with archive.file(member) as file:
        frame = _scan(archive, member, file, columns=["session_id", "item_id", "timeframe", "eventdate"])
        day = pl.col("eventdate").str.to_date("%Y-%m-%d", strict=False).cast(pl.Int32).cast(pl.Int64)
        offset = pl.col("timeframe").cast(pl.Int64, strict=False).fill_null(0)
        frame = frame.select(
            "session_id", "item_id", (day * _DAY + offset).alias("timestamp"), pl.lit(action).alias("action")
        )
        what = f"{action}s without session, item or day"
        write_lazily(
            usable_rows(frame, pl.any_horizontal(pl.all().is_null()), report, what=what, member=member), part, member
        )


def _scan(archive: Archive, member: Member, file: Path, *, columns: list[str]) -> pl.LazyFrame:
    """Scan a file under the standard names.

    Names of the header are written sessionId or session_id, and are separated by semicolons or commas.
    """
    with archive.stream(member) as stream:
        header = stream.readline(1 << 16).decode("utf-8", errors="replace")
    separator = ";" if ";" in header else ","
    standard_names = {name: _standard_name(name) for name in header.strip().split(separator)}
    file_columns = [name for name, standard_name in standard_names.items() if standard_name in columns]
    missing_columns = [name for name in columns if name not in standard_names.values()]
    frame = scan_text(file, member, columns=[*file_columns, *missing_columns], separator=separator)
    return frame.rename(standard_names).with_columns(pl.col(columns).replace("NA", None))


def _standard_name(name: str) -> str:
    """Return the standard name of a column."""
    plain = name.strip().strip('"').lower().replace("_", "").replace(".", "")
    return _NAMES.get(plain, "name_tokens" if plain == "productnametokens" else plain)


def _write_items(archive: Archive, folder: Path, report: Report) -> dict[str, Any]:
    """Write items.parquet: the logarithm of the price, category and name (hashed words) of the items of the log.

    Returns the table [items] of dataset.toml.
    """
    items = pl.scan_parquet(folder / "interactions.parquet").select(pl.col("item_id").unique()).collect()
    features: dict[str, str] = {}
    products, categories = archive.get("products.csv", "product.csv"), archive.get("product-categories.csv")
    if products is not None:
        with archive.file(products) as file:
            columns = ["item_id", "price_log2", "name_tokens"]
            table = collect_rows(_scan(archive, products, file, columns=columns), products)
        table = table.unique("item_id", keep="first").select(
            "item_id",
            finite_number(pl.col("price_log2")).alias("price_log2"),
            pl.col("name_tokens").str.replace_all(",", " "),
        )
        items = items.join(table, on="item_id", how="left")
        features["price_log2"] = "numeric"
    if categories is not None:
        with archive.file(categories) as file:
            table = collect_rows(_scan(archive, categories, file, columns=["item_id", "category"]), categories)
        items = items.join(table.unique("item_id", keep="first"), on="item_id", how="left")
        features["category"] = "categorical"
    if not features:
        report.note("neither products.csv nor product-categories.csv was given: items have no features")
        return {}
    items.write_parquet(folder / "items.parquet")
    return {"items": {"features": features} | ({"text": "{name_tokens}"} if products is not None else {})}
