"""Read a data set from a folder of tables, from frames in memory, or from the simulated shop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from nextitem.core.catalog import ACTION, Catalog, ColumnEncoding
from nextitem.core.dataset import Dataset, Impressions, Users
from nextitem.core.errors import UserError
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.data import validation
from nextitem.data.events import EventReader
from nextitem.data.fingerprint import dataset_fingerprint
from nextitem.data.frames import Columns, as_frame, column_renames
from nextitem.data.impressions import ImpressionReader
from nextitem.data.settings import TABLES, DatasetSettings, parse_settings, read_settings, template_columns
from nextitem.data.tables import Table, find_table, frame_table, reading, unread_files
from nextitem.data.times import time_ticks

SHOP = "shop"
TEXT_COLUMNS = ("title", "category", "brand", "description")  # columns of the content sentence without a template
NO_IDS = np.empty(0, np.int32)
# A request column with more distinct values than this is hashed, into this number of codes.
OPEN_VOCABULARY = 65_536


def load_dataset(source: str | Path, *, drop_unknown_items: bool = False) -> Dataset:
    """Read a dataset folder or the simulated shop.

    Users and items are numbered in ascending order of their ids (integers by value), so the order of rows in the files
    does not matter. Only sessions of an undated log of anonymous sessions are numbered in the order of their first
    appearance.

    Events are ordered by user, timestamp, position, row (formats of times: data/times.py). Times may be missing if
    there is a column `position`. An event without a time then has the place of the last dated event before it, and the
    log counts as undated.

    Without [items] text, the content sentence consists of title, category, brand and description, as far as these
    columns exist. Of other columns of the log only these are read: action, session_id (renumbered in order of
    appearance), the query of searches, split, and the declared labels and context. Categorical context and actions are
    Enum columns, so that their codes are the same in every part of a split.

    The notes of the data set list everything that is left out, merged or assumed.

    Args:
        source: "shop" for the simulated shop, anything else is the path of a dataset folder.
        drop_unknown_items: leave out rows whose item is not in the items table, instead of raising.

    Raises:
        UserError: there is a mistake in the files; the message names file, column and row.

    """
    if not isinstance(source, str | Path):
        raise UserError(
            f"the data must be a data set, the path of a folder, or {SHOP!r}, got a {type(source).__name__}; make a "
            "data set of a data frame with: Dataset.from_frames(events)"
        )
    if source == SHOP:
        from nextitem.data.shop.shop import generate_shop

        shop = generate_shop()
        frames = {name: getattr(shop, name) for name in TABLES}
        dataset = replace(dataset_from_frames(frames, shop.settings, name=SHOP), source=SHOP)
        note = f"{SHOP!r} is the simulated shop; the folder of that name here is ./{SHOP}"
        return replace(dataset, notes=(note, *dataset.notes)) if Path(SHOP).is_dir() else dataset
    folder = Path(source)
    with reading(folder):
        if not folder.is_dir():
            problem = "is a file, not a folder" if folder.exists() else "no such folder"
            raise UserError(f"{folder}: {problem}; give a folder with interactions.parquet, or {SHOP!r}")
    settings = read_settings(folder / "dataset.toml")
    tables = {name: find_table(folder, name, rename=getattr(settings, name).rename) for name in TABLES}
    unread = [file for name, table in tables.items() if table is None for file in unread_files(folder, name)]
    if tables["interactions"] is None and tables["impressions"] is None:
        hint = f"; {', '.join(unread)}: not read, convert to one of these" if unread else ""
        raise UserError(
            f"{folder}: has neither interactions nor impressions; add interactions.parquet or interactions.csv{hint}"
        )
    dataset = _assemble(tables, settings, name=folder.resolve().name, drop_unknown_items=drop_unknown_items)
    notes = [f"{folder / file}: is not read; a table is a file .parquet or .csv" for file in unread]
    notes += dataset.notes
    return replace(dataset, source=str(source), notes=tuple(notes), drops_unknown_items=drop_unknown_items)


def dataset_from_frames(
    frames: Mapping[str, object],
    settings: Mapping[str, Any] | None = None,
    *,
    columns: Columns | None = None,
    name: str = "data",
    drop_unknown_items: bool = False,
) -> Dataset:
    """Build a data set from tables in memory, by the same rules as from a folder.

    Args:
        frames: interactions and/or impressions, optionally items and users, by name. Each is a polars or pandas data
            frame, an Arrow table, or a mapping from column names to lists. None: there is no such table.
        settings: the contents of dataset.toml.
        columns: standard name -> name in the frames, for all tables or by table (data/frames.py).
        name: the name of the data set, unless the settings contain one.
        drop_unknown_items: leave out rows whose item is not in the items table, instead of raising.

    Raises:
        UserError: there is a mistake in the tables; the message names table, column and row.

    """
    unknown = [table for table in frames if table not in TABLES]
    if unknown:
        raise UserError(f"there is no table {unknown[0]!r}; give {', '.join(TABLES)}")
    parsed = parse_settings(settings or {}, where=f"settings of {name}")
    present = {table: as_frame(frame, where=f"{name}/{table}") for table, frame in frames.items() if frame is not None}
    if "interactions" not in present and "impressions" not in present:
        raise UserError(f"{name}: has neither interactions nor impressions; give one of them")
    setting_renames = {table: dict(getattr(parsed, table).rename) for table in present}
    renames = column_renames(present, columns or {}, setting_renames, name=name)
    tables = {table: frame_table(f"{name}/{table}", frame, rename=renames[table]) for table, frame in present.items()}
    return _assemble(tables, parsed, name=name, drop_unknown_items=drop_unknown_items)


def _assemble(
    tables: Mapping[str, Table | None], settings: DatasetSettings, *, name: str, drop_unknown_items: bool
) -> Dataset:
    """Read all tables, number users and items, and return the data set with its fingerprint."""
    for table, table_settings in dict(settings).items():
        if table in TABLES and table_settings != TABLES[table]() and tables.get(table) is None:
            raise UserError(f"{name}: the settings have a table [{table}], but there is no file {table}; add it")
    log, impression_table, items = tables.get("interactions"), tables.get("impressions"), tables.get("items")
    events = None if log is None else EventReader(log, settings.interactions)
    impressions = None if impression_table is None else ImpressionReader(impression_table, settings.impressions)
    readers = [reader for reader in (events, impressions) if reader is not None]
    catalog = _catalog(items, settings, readers)
    users = _users(tables.get("users"), settings, events, impressions)
    interactions = Interactions(NO_IDS, NO_IDS, len(users.ids), len(catalog.ids))
    if events is not None:
        interactions = events.read(users.ids, catalog.ids, items_table=items, drop_unknown=drop_unknown_items)
    rows = None
    if impressions is not None:
        rows = impressions.read(users.ids, catalog.ids, items_table=items, drop_unknown=drop_unknown_items)
    dataset = Dataset(
        name=settings.name or name,
        interactions=interactions,
        catalog=replace(
            catalog,
            requests=_request_columns(users, rows),
            events=_event_columns(interactions, settings),
            labels=() if rows is None else rows.labels,
        ),
        users=users,
        impressions=rows,
        repeats=settings.repeats,
        anonymous=events is not None and events.anonymous,
        labels=settings.interactions.labels,
        context=dict(settings.interactions.context),
        notes=tuple(note for table in tables.values() if table is not None for note in table.notes),
    )
    return replace(dataset, fingerprint=dataset_fingerprint(dataset))


def _as_one_type(ids: list[pl.Series]) -> list[pl.Series]:
    """Return the ids of several tables as integers if all are integers, otherwise as text."""
    has_text = any(series.dtype == pl.String for series in ids)
    return [series.cast(pl.String if has_text else pl.Int64).alias("id") for series in ids]


def _catalog(table: Table | None, settings: DatasetSettings, readers: list[EventReader | ImpressionReader]) -> Catalog:
    """Return the catalogue: the items of the items table, or, without one, those of the log and the impressions."""
    item_settings = settings.items
    if table is None:
        ids = IdMap.sorted_from(pl.concat(_as_one_type([reader.item_ids() for reader in readers])))
        return Catalog(ids, pl.DataFrame({"item_id": ids.external}))
    table.require("item_id")
    item_id = validation.id_column(table, "item_id")
    validation.unique_ids(table, "item_id", item_id)
    columns = validation.feature_columns(table, item_settings.features, setting="[items] features")
    columns += validation.content_columns(table, item_settings.features)
    frame = table.all_columns([item_id, *columns])
    if not frame.height:
        raise UserError(f"{table.where}: contains no items; add them, or remove the file to use the log's items")
    # The type of the ids depends on the log too: "007" in the log must not become item 7.
    samples = [pl.Series([], dtype=reader.item_type()) for reader in readers]
    external = _as_one_type([frame["item_id"], *samples])[0]
    frame = frame.with_columns(external.alias("item_id")).sort("item_id")
    released = None
    if item_settings.released is not None:
        validation.require_declared(table, item_settings.released, setting="[items] released")
        ticks, per_ms = time_ticks(table, item_settings.released, is_feature=True)
        times = table.collect(item_id.cast(external.dtype).alias("id"), (ticks // per_ms).alias("time"))
        # 0 stands for a missing time, so the very first millisecond of 1970 becomes the second one.
        released = times.sort("id")["time"].replace(0, 1).fill_null(0).to_numpy()
    return Catalog(
        IdMap(frame["item_id"].alias("id")),
        frame,
        features=dict(item_settings.features),
        text=_sentences(frame, item_settings.text, where=table.where),
        released_ms=released,
    )


def _sentences(frame: pl.DataFrame, template: str | None, *, where: str) -> pl.Series | None:
    """Return the content sentence of each item [N], or None if there is neither a template nor a text column."""
    if template is None:
        template = ". ".join(
            f"{{{column}}}" for column in TEXT_COLUMNS if frame.schema.get(column) in (pl.String, pl.List(pl.String))
        )
    if not template:
        return None
    parts: list[pl.Expr] = []
    for literal, column in template_columns(template, where=where):
        parts.append(pl.lit(literal))
        if column is None:
            continue
        if column not in frame.columns:
            raise UserError(
                f"{where}: [items] text in dataset.toml names column {column!r}, "
                f"but there are {', '.join(frame.columns)}; correct the template"
            )
        kind = frame.schema[column]
        value = pl.col(column)
        if isinstance(kind, pl.List):
            value = value.cast(pl.List(pl.String)).list.join(", ", ignore_nulls=True)
        parts.append(value.cast(pl.String).fill_null(""))
    return frame.select(pl.concat_str(parts).alias("text"))["text"]


def _users(
    table: Table | None,
    settings: DatasetSettings,
    events: EventReader | None,
    impressions: ImpressionReader | None,
) -> Users:
    """Return all users of the users table, the log and the impressions, with their features."""
    impression_users = None if impressions is None else impressions.user_ids()
    if events is not None and events.anonymous:
        other = impressions.table if impressions is not None and impression_users is not None else table
        if other is not None:
            raise UserError(
                f"{events.table.where}: has no user_id, but {other.where} has users; add user_id to the log"
            )
        ids = IdMap(events.user_ids().alias("id"))
        return Users(ids, pl.DataFrame({"user_id": ids.external}))
    data_ids = [] if events is None else [events.user_ids()]
    data_ids += [] if impression_users is None else [impression_users]
    if events is not None and impressions is not None and impression_users is not None:
        num_common = _num_common(impression_users, data_ids[0])
        if num_common < len(impression_users):
            impressions.table.note(
                f"{len(impression_users) - num_common:,} of {len(impression_users):,} users have no event in "
                f"{events.table.where}, so their history is empty"
            )
    if table is None:
        ids = IdMap.sorted_from(pl.concat(_as_one_type([*data_ids, pl.Series([], dtype=pl.Null)])))
        return Users(ids, pl.DataFrame({"user_id": ids.external}))
    table.require("user_id")
    user_id = validation.id_column(table, "user_id")
    validation.unique_ids(table, "user_id", user_id)
    columns = validation.feature_columns(table, settings.users.features, setting="[users] features")
    frame = table.all_columns([user_id, *columns])
    table_ids, *others = _as_one_type([frame["user_id"], *data_ids])
    if others:
        _check_join(table, table_ids, pl.concat(others).unique(), is_needed=bool(settings.users.features))
    ids = IdMap.sorted_from(pl.concat([table_ids, *others]))
    rows = pl.DataFrame({"user_id": ids.external}).join(
        frame.with_columns(table_ids.alias("user_id")), on="user_id", how="left", maintain_order="left"
    )
    return Users(ids, rows, features=dict(settings.users.features))


def _check_join(table: Table, table_ids: pl.Series, data_ids: pl.Series, *, is_needed: bool) -> None:
    """Add a note if the users table lacks users of the data.

    Raises UserError if it lacks all of them and its features are needed.
    """
    num_common = _num_common(data_ids, table_ids)
    if num_common == len(data_ids):
        return
    if not num_common and is_needed:
        raise UserError(
            f"{table.where}: none of the {len(data_ids):,} users of the data is in it: ids look like {table_ids[0]!r} "
            f"here and like {data_ids.sort()[0]!r} in the data; write them in the same way"
        )
    table.note(f"has {num_common:,} of the {len(data_ids):,} users of the data; the others have no features")


def _num_common(ids: pl.Series, others: pl.Series) -> int:
    """Return the number of `ids` that are among `others`."""
    ids, others = _as_one_type([ids, others])
    return int(ids.is_in(others.implode()).sum())


def _request_columns(users: Users, impressions: Impressions | None) -> dict[str, ColumnEncoding]:
    """Return the encodings of request columns: features of users, and the context of impressions."""
    columns = {f"user.{name}": (kind, users.table[name]) for name, kind in users.features.items()}
    if impressions is not None:
        columns |= {name: (kind, impressions.columns[name]) for name, kind in impressions.context.items()}
    encodings = {name: _encoding(kind, column) for name, (kind, column) in columns.items()}
    return {name: encoding for name, encoding in encodings.items() if encoding is not None}


def _event_columns(log: Interactions, settings: DatasetSettings) -> dict[str, ColumnEncoding]:
    """Return the encodings of event columns except item and time: action, context and labels, one value per event."""
    interaction_settings = settings.interactions
    kinds = {ACTION: "categorical"} if ACTION in log.columns.columns else {}
    kinds |= {
        name: kind
        for name, kind in interaction_settings.context.items()
        if kind in ("categorical", "numeric", "timestamp")
    }
    kinds |= dict.fromkeys(interaction_settings.labels, "numeric")
    encodings = {name: _encoding(kind, log.columns[name]) for name, kind in kinds.items()}
    return {name: encoding for name, encoding in encodings.items() if encoding is not None}


def _encoding(kind: str, column: pl.Series) -> ColumnEncoding | None:
    """Return the encoding of a column of this feature type, or None for text, which is not encoded."""
    if kind in ("numeric", "timestamp"):
        return ColumnEncoding(kind)
    if kind == "text":
        return None
    kind = "categorical" if kind == "categorical" else "categorical-list"  # a history is a list of values
    members = column.explode() if kind == "categorical-list" else column
    if isinstance(members.dtype, pl.Enum):
        values = members.dtype.categories.cast(pl.String).sort()
    else:
        values = members.cast(pl.String).drop_nulls().unique().sort()
    if len(values) > OPEN_VOCABULARY:
        return ColumnEncoding(kind, None, OPEN_VOCABULARY)
    return ColumnEncoding(kind, values)
