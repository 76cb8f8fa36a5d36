"""Importer of the data of LETTER and LC-Rec: JSON of item numbers by user, and of texts by item number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from nextitem.core.errors import UserError
from nextitem.data.importers.archive import Archive, Member
from nextitem.data.importers.json_lines import id_of, text_of, texts_of
from nextitem.data.importers.report import Report
from nextitem.data.importers.tables import Schema, TableWriter, complete_items, distinct_values

_LOG: Schema = {"user_id": pl.String, "item_id": pl.String, "position": pl.Int64}
_ITEMS: Schema = {
    "item_id": pl.String,
    "title": pl.String,
    "brand": pl.String,
    "categories": pl.List(pl.String),
    "description": pl.String,
}


def import_letter(archive: Archive, folder: Path, report: Report, *, name: str) -> dict[str, Any]:
    """Import NAME.inter.json and NAME.item.json, and return the settings of dataset.toml.

    In the first, "3": [12, 7, ...] are the items of user 3 in their order. The second contains title, brand,
    categories and description by item number.
    """
    log = archive.require("*.inter.json")
    has_repeats = False
    with TableWriter(folder / "interactions.parquet", _LOG) as writer:
        for user, items in _table(archive, log).items():
            ids = [id_of(item) for item in items] if isinstance(items, list) else [None]
            if None in ids:
                raise UserError(f"{log.where}: user {user!r} has {str(items)[:40]!r}, which is no list of item numbers")
            has_repeats = has_repeats or len(set(ids)) < len(ids)
            for position, item in enumerate(ids):
                writer.add([user, item, position])
            report.rows += len(ids)
    settings: dict[str, Any] = {"name": log.base.split(".")[0], "repeats": has_repeats}
    items_file = archive.get("*.item.json")
    if items_file is None:
        report.note("no NAME.item.json was given: items have no features")
        return settings
    ids_of_log = distinct_values(folder / "interactions.parquet", "item_id")
    described_ids: set[str] = set()
    with TableWriter(folder / "items.parquet", _ITEMS) as writer:
        for item, row in _table(archive, items_file).items():
            if isinstance(row, dict):
                described_ids.add(item)
                texts = [text_of(row.get(column)) for column in ("title", "brand")]
                categories = [part.strip() for text in texts_of(row.get("categories")) for part in text.split(",")]
                writer.add([item, *texts, categories, text_of(row.get("description"))])
        complete_items(ids_of_log, writer, described_ids, report, where=items_file.name)
    settings["items"] = {
        "text": "{title}. {brand}. {categories}. {description}",
        "features": {"brand": "categorical", "categories": "categorical-list"},
    }
    return settings


def _table(archive: Archive, member: Member) -> dict[str, Any]:
    """Return the JSON object of a file; raise UserError if it contains something else."""
    with archive.stream(member) as stream:
        try:
            table = json.load(stream)
        except (ValueError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{member.where}: is no JSON, or is truncated ({error})") from None
    if not isinstance(table, dict):
        raise UserError(f"{member.where}: is no JSON object of users or items by number")
    return table
