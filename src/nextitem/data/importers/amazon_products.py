"""Table of products, shared by the importers of Amazon reviews."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from nextitem.data.importers.archive import Archive, Member
from nextitem.data.importers.json_lines import id_of, json_rows
from nextitem.data.importers.report import Report
from nextitem.data.importers.tables import Schema, TableWriter, complete_items, distinct_values

LOG: Schema = {"user_id": pl.String, "item_id": pl.String, "rating": pl.Float64, "timestamp": pl.Int64}
PRODUCTS: Schema = {
    "item_id": pl.String,
    "title": pl.String,
    "brand": pl.String,
    "price": pl.Float64,
    "categories": pl.List(pl.String),
    "description": pl.String,
}
REVIEWED_AGAIN = "later reviews of a product by the same user"


def write_products(
    archive: Archive,
    member: Member | None,
    folder: Path,
    report: Report,
    *,
    id_column: str,
    product: Callable[[dict[str, Any]], list[Any]],
) -> None:
    """Write items.parquet: the products of the log, with their metadata.

    Products that are not in the log, and a second description of the same product, are left out and counted.

    Args:
        archive: the files.
        member: the file of metadata, or None if there is none.
        folder: the new dataset folder, which contains interactions.parquet.
        report: gets the notes.
        id_column: the key of the item id in a row of metadata.
        product: returns the values of PRODUCTS after item_id for a row of metadata.

    """
    if member is None:
        report.note("no metadata file was given: items have no features")
        return
    ids = distinct_values(folder / "interactions.parquet", "item_id")
    described_ids: set[str] = set()
    num_repeated = num_others = num_without_id = 0
    with TableWriter(folder / "items.parquet", PRODUCTS) as writer:
        for row in json_rows(archive, member, report):
            item = id_of(row.get(id_column))
            if item is None:
                num_without_id += 1
            elif item not in ids:
                num_others += 1
            elif item in described_ids:
                num_repeated += 1
            else:
                described_ids.add(item)
                writer.add([item, *product(row)])
        complete_items(ids, writer, described_ids, report, where=member.name)
    report.note_left_out(num_others, f"products of {member.name} that nobody in the log has reviewed")
    report.note_left_out(num_repeated, f"further descriptions of a product in {member.name}")
    report.note_left_out(num_without_id, f"rows of {member.name} without {id_column}")


def metadata_of(archive: Archive, log: Member, extension: str) -> Member | None:
    """Return the file of metadata that belongs to a log: the only one, or of several the one of the log's category."""
    metadata = archive.find(f"meta_*.{extension}")
    if len(metadata) <= 1:
        return metadata[0] if metadata else None
    return archive.require(f"meta_{category_of(log)}.{extension}")


def category_of(log: Member) -> str:
    """Return the category in a log's name, in lower case: "beauty" for reviews_Beauty_5.json.gz."""
    stem = log.base.split(".")[0].removeprefix("reviews_").removeprefix("ratings_")
    return stem.removesuffix("_5")


def settings(name: str, log: Member, *, has_products: bool) -> dict[str, Any]:
    """Return the settings of dataset.toml: a product is reviewed once, so seen items are not recommended."""
    top = {
        "name": f"{name}-{category_of(log).replace('_', '-')}",
        "repeats": False,
        "interactions": {"labels": ["rating"]},
    }
    if not has_products:
        return top
    return {
        **top,
        "items": {
            "text": "{title}. {brand}. {categories}",
            "features": {"brand": "categorical", "price": "numeric", "categories": "categorical-list"},
        },
    }
