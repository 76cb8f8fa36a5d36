"""Importer of Steam: reviews and games as Python literals of Python 2, or as JSON."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import polars as pl

from nextitem.core.errors import UserError
from nextitem.data.importers.archive import Archive, Member
from nextitem.data.importers.json_lines import id_of, json_rows, number_of, text_of, texts_of
from nextitem.data.importers.report import Report
from nextitem.data.importers.tables import Schema, TableWriter, complete_items, distinct_values, first_of_each_pair

_LOG: Schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "hours": pl.Float64}
_GAMES: Schema = {
    "item_id": pl.String,
    "title": pl.String,
    "developer": pl.String,
    "publisher": pl.String,
    "genres": pl.List(pl.String),
    "tags": pl.List(pl.String),
    "price": pl.Float64,
    "release_date": pl.Date,
}


def import_steam(archive: Archive, folder: Path, report: Report, *, name: str) -> dict[str, Any]:
    """Import Steam, and return the settings of dataset.toml.

    Files are steam_reviews.json.gz (username, product_id, date, hours) and steam_games.json.gz (id, title, genres,
    ...). Users are identified by username, which every row has; the number of a user is in a few rows only.
    """
    _write_reviews(archive, archive.require("steam_reviews.json", "steam_new.json"), folder, report)
    first_of_each_pair(folder / "interactions.parquet", report, what="later reviews of a game by the same user")
    settings: dict[str, Any] = {"repeats": False, "interactions": {"context": {"hours": "numeric"}}}
    games = archive.get("steam_games.json", "output_steam_games.json")
    if games is None:
        report.note("no steam_games.json.gz was given: games have no features")
        return settings
    _write_games(archive, games, folder, report)
    settings["items"] = {
        "text": "{title}. {developer}. {genres}. {tags}",
        "features": {
            "developer": "categorical",
            "publisher": "categorical",
            "genres": "categorical-list",
            "tags": "categorical-list",
            "price": "numeric",
        },
        "released": "release_date",
    }
    return settings


def _write_reviews(archive: Archive, member: Member, folder: Path, report: Report) -> None:
    """Write interactions.parquet from lines of reviews."""
    num_unusable = 0
    with TableWriter(folder / "interactions.parquet", _LOG) as writer:
        for row in json_rows(archive, member, report):
            report.rows += 1
            user, item, day = id_of(row.get("username")), id_of(row.get("product_id")), _day(row.get("date"))
            if user is None or item is None or day is None:
                num_unusable += 1
                continue
            seconds = int(datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC).timestamp())
            writer.add([user, item, seconds, number_of(row.get("hours"))])
    if not writer.num_rows:
        raise UserError(f"{member.where}: contains no review with username, product_id and date")
    report.note_left_out(num_unusable, "reviews without username, product_id or date")


def _write_games(archive: Archive, member: Member, folder: Path, report: Report) -> None:
    """Write items.parquet: the games of the log with their descriptions."""
    ids = distinct_values(folder / "interactions.parquet", "item_id")
    described_ids: set[str] = set()
    num_others = num_repeated = 0
    with TableWriter(folder / "items.parquet", _GAMES) as writer:
        for row in json_rows(archive, member, report):
            item = id_of(row.get("id"))
            if item is None or item not in ids:
                num_others += 1
            elif item in described_ids:
                num_repeated += 1
            else:
                described_ids.add(item)
                writer.add([item, *_game(row)])
        complete_items(ids, writer, described_ids, report, where=member.name)
    report.note_left_out(num_others, f"games of {member.name} that nobody in the log has reviewed")
    report.note_left_out(num_repeated, f"further descriptions of a game in {member.name}")


def _game(row: dict[str, Any]) -> list[Any]:
    """Return the values of _GAMES after item_id; a free game has the price 0."""
    price = row.get("price")
    is_free = isinstance(price, str) and "free" in price.lower()
    return [
        text_of(row.get("app_name")) or text_of(row.get("title")),
        text_of(row.get("developer")),
        text_of(row.get("publisher")),
        texts_of(row.get("genres")),
        texts_of(row.get("tags")),
        0.0 if is_free else number_of(price),
        _day(row.get("release_date")),
    ]


def _day(value: object) -> datetime.date | None:
    """Return a day such as 2017-12-17 or "Dec 17, 2017", 1970 or later; None for anything else ("Soon..")."""
    for form in ("%Y-%m-%d", "%b %d, %Y", "%d %b, %Y"):
        try:
            day = datetime.datetime.strptime(str(value), form).date()
        except ValueError:
            continue
        return day if 1970 <= day.year < 2100 else None
    return None
