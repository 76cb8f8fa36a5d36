"""Read the events of all users from an event store, or from a data set, as one table."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from nextitem.core.errors import UserError
from nextitem.data import validation
from nextitem.data.settings import read_settings
from nextitem.data.tables import find_table
from nextitem.data.times import time_ticks
from nextitem.evaluation.attribution import EVENT_SCHEMA
from nextitem.serving.stores import StoreUnavailable, open_store

PAGE = 50_000  # events that are read at once
SQLITE = "sqlite:///"


def read_events(source: str, *, namespace: str = "default") -> pl.DataFrame:
    """Return all events as in `EVENT_SCHEMA`, each event id once, timestamps in milliseconds.

    Args:
        source: URL of an event store, or a folder with a table `interactions`, in which action, event_id and request_id
            are optional columns.
        namespace: name of the tenant, for a store.

    Raises:
        UserError: the source is neither, or cannot be read.

    """
    if ":" in source and not Path(source).exists():
        return _from_store(source, namespace)
    return _from_folder(Path(source))


def _from_store(url: str, namespace: str) -> pl.DataFrame:
    if url.startswith(SQLITE) and not Path(url.removeprefix(SQLITE)).is_file():
        raise UserError(
            f"{url}: no such file; pass the --store of nextitem serve, or a folder"
        )  # opening would create it
    pages, cursor = [pl.DataFrame(schema=EVENT_SCHEMA)], 0
    try:
        with open_store(url, namespace=namespace) as store:
            while (page := store.events_after(cursor, limit=PAGE)).events:
                rows = [
                    (event.user_id, event.item_id, event.action, event.timestamp_ms, event.request_id)
                    for event in page.events
                ]
                pages.append(pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row"))
                cursor = page.cursor
    except StoreUnavailable as error:
        raise UserError(f"the events cannot be read: {error}") from None
    return pl.concat(pages)


def _from_folder(folder: Path) -> pl.DataFrame:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; pass a folder with interactions.parquet, or the URL of a store")
    table = find_table(folder, "interactions", rename=read_settings(folder / "dataset.toml").interactions.rename)
    if table is None:
        raise UserError(f"{folder}: has no interactions; add interactions.parquet or interactions.csv")
    table.require("user_id", "item_id", "timestamp")
    time, ticks_per_ms = time_ticks(table, "timestamp")
    columns = [validation.id_column(table, name).cast(pl.String).alias(name) for name in ("user_id", "item_id")]
    columns.append((time // ticks_per_ms).alias("timestamp"))
    for name in ("action", "request_id", "event_id"):
        text = pl.col(name).cast(pl.String) if name in table else pl.lit(None, pl.String)
        columns.append(text.alias(name))
    frame = table.collect(*columns)
    is_repeated = pl.col("event_id").is_not_null() & ~pl.col("event_id").is_first_distinct()
    return frame.filter(~is_repeated).select(pl.col(name).cast(kind) for name, kind in EVENT_SCHEMA.items())
