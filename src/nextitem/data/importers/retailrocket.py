"""Importer of Retailrocket: events.csv, item_properties_part*.csv, category_tree.csv."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import polars as pl

from nextitem.data.importers.archive import Archive
from nextitem.data.importers.report import Report
from nextitem.data.importers.tables import collect_rows, distinct_values, scan_text, usable_rows, write_lazily

_ACTIONS = ("view", "addtocart", "transaction")
_MAX_DEPTH = 32  # levels of the category tree; a cycle would have no end


def import_retailrocket(archive: Archive, folder: Path, report: Report, *, name: str) -> dict[str, Any]:
    """Import Retailrocket, and return the settings of dataset.toml.

    Events are imported unchanged. Of each item the first value of every property is imported, since later values would
    reveal the future.
    """
    events = archive.require("events.csv")
    with archive.file(events) as file:
        frame = scan_text(file, events, columns=["timestamp", "visitorid", "event", "itemid"]).select(
            pl.col("visitorid").alias("user_id"),
            pl.col("itemid").alias("item_id"),
            pl.col("timestamp").cast(pl.Int64, strict=False),
            pl.col("event").alias("action"),
        )
        what = "events without visitor, item, time or kind"
        frame = usable_rows(frame, pl.any_horizontal(pl.all().is_null()), report, what=what, member=events)
        write_lazily(frame, folder / "interactions.parquet", events)
    actions = distinct_values(folder / "interactions.parquet", "action")
    others = actions - set(_ACTIONS)
    if others:
        report.note(f"events of an unknown kind are context: {', '.join(sorted(others))}")
    settings: dict[str, Any] = {
        "repeats": True,
        "interactions": {"positive_actions": [action for action in _ACTIONS if action in actions]},
    }
    if not archive.find("item_properties*.csv"):
        report.note("no item_properties_part1.csv was given: items have no features")
        return settings
    _write_items(archive, folder, report)
    settings["items"] = {"text": "{properties}", "features": {"categories": "categorical-list"}}
    return settings


def _write_items(archive: Archive, folder: Path, report: Report) -> None:
    """Write items.parquet: the path of categories of each item, and all other properties (hashed words) as text."""
    members = archive.find("item_properties*.csv")
    ids = distinct_values(folder / "interactions.parquet", "item_id")
    log_items = pl.LazyFrame({"itemid": sorted(ids)}, schema={"itemid": pl.String})
    with ExitStack() as stack:
        parts = [
            scan_text(
                stack.enter_context(archive.file(member)), member, columns=["timestamp", "itemid", "property", "value"]
            )
            for member in members
        ]
        first = archive.scratch / "properties.parquet"
        properties = (
            pl.concat([part.select("timestamp", "itemid", "property", "value") for part in parts])
            .join(log_items, on="itemid", how="semi")
            .filter(pl.col("property") != "available")
            .with_columns(pl.col("timestamp").cast(pl.Int64, strict=False))
            .group_by("itemid", "property")
            .agg(
                pl.col("value").sort_by("timestamp").first(),
                (pl.col("value").n_unique() > 1).alias("has_changed"),
            )
        )
        write_lazily(properties, first, members[0])
    stored = pl.scan_parquet(first)
    num_changed = int(stored.select(pl.col("has_changed").sum()).collect().item())
    category = stored.filter(pl.col("property") == "categoryid").select("itemid", pl.col("value").alias("category"))
    words = (
        stored.filter(pl.col("property") != "categoryid")
        .sort("itemid", "property")
        .group_by("itemid", maintain_order=True)
        .agg(pl.col("value").str.join(" ").alias("properties"))
    )
    items = log_items.join(category, on="itemid", how="left").join(words, on="itemid", how="left").collect()
    table = items.select(
        pl.col("itemid").alias("item_id"), _category_paths(archive, items["category"]).alias("categories"), "properties"
    )
    table.write_parquet(folder / "items.parquet")
    if num_changed:
        report.note(f"{num_changed:,} properties change over time: the first value of each is used")
    num_missing = int((items["category"].is_null() & items["properties"].is_null()).sum())
    if num_missing:
        report.note(f"{num_missing:,} items of the log have no properties")


def _category_paths(archive: Archive, categories: pl.Series) -> pl.Series:
    """Return the path of each category from the root down; without category_tree.csv, the category alone."""
    parents: dict[str, str | None] = {}
    member = archive.get("category_tree.csv")
    if member is not None:
        with archive.file(member) as file:
            tree = collect_rows(scan_text(file, member, columns=["categoryid", "parentid"]), member)
        parents = dict(zip(tree["categoryid"].to_list(), tree["parentid"].to_list(), strict=True))
    paths: dict[str, list[str]] = {}
    for category in categories.drop_nulls().unique().to_list():
        path, parent = [category], parents.get(category)
        while parent is not None and len(path) < _MAX_DEPTH:
            path.insert(0, parent)
            parent = parents.get(parent)
        paths[category] = path
    return pl.Series(
        [None if category is None else paths[category] for category in categories], dtype=pl.List(pl.String)
    )
