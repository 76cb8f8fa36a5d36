"""Importers of MovieLens of all sizes: u.data (100k), .dat (1m, 10m) and .csv (20m and later)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from nextitem.core.errors import UserError
from nextitem.data.importers.archive import Archive, Member
from nextitem.data.importers.json_lines import id_of, number_of, whole_number_of
from nextitem.data.importers.report import Report
from nextitem.data.importers.tables import (
    Schema,
    TableWriter,
    collect_rows,
    finite_number,
    scan_text,
    unique_and_complete,
    usable_rows,
    write_lazily,
)

# Names of the published folders -> their importers.
_FOLDERS = {
    "ml-100k": "ml-100k",
    "ml-1m": "ml-1m",
    "ml-10m100k": "ml-10m",
    "ml-20m": "ml-20m",
    "ml-25m": "ml-25m",
    "ml-32m": "ml-32m",
    "ml-latest": "ml-latest",
    "ml-latest-small": "ml-latest-small",
}
_RATINGS: Schema = {"user_id": pl.String, "item_id": pl.String, "rating": pl.Float64, "timestamp": pl.Int64}
_MOVIES: Schema = {"item_id": pl.String, "title": pl.String, "genres": pl.List(pl.String), "year": pl.Int32}
_NO_GENRES = "(no genres listed)"
_YEAR = r"\((\d{4})\D?\s*\)\s*$"


def import_100k(archive: Archive, folder: Path, report: Report, *, name: str) -> dict[str, Any]:
    """Import ml-100k: u.data (tabs), u.item and u.user (bars, Latin-1). Returns the settings of dataset.toml."""
    _check_size(archive, name)
    _write_ratings(archive, archive.require("u.data"), "\t", folder, report)
    genre_names = [row[0] for row in _rows(archive, archive.require("u.genre"), "|", "latin-1") if len(row) == 2]
    movies = []
    for row in _rows(archive, archive.require("u.item"), "|", "latin-1"):
        flags = zip(genre_names, row[5:], strict=False)
        movies.append([row[0], row[1], [genre for genre, flag in flags if flag == "1" and genre != "unknown"]])
    _write_movies(movies, folder, report, where="u.item")
    people = _rows(archive, archive.require("u.user"), "|", "latin-1")
    _write_users(people, ["user_id", "age", "gender", "occupation", "zip_code"], folder, report, where="u.user")
    return _settings({"gender": "categorical", "age": "numeric", "occupation": "categorical"})


def import_1m(archive: Archive, folder: Path, report: Report, *, name: str) -> dict[str, Any]:
    """Import ml-1m: ratings.dat, movies.dat, users.dat (double colons, Latin-1); age and occupation are codes.

    Returns the settings of dataset.toml.
    """
    _check_size(archive, name)
    _import_dat(archive, folder, report)
    people = _rows(archive, archive.require("users.dat"), "::", "latin-1")
    _write_users(people, ["user_id", "gender", "age", "occupation", "zip_code"], folder, report, where="users.dat")
    return _settings({"gender": "categorical", "age": "categorical", "occupation": "categorical"})


def import_10m(archive: Archive, folder: Path, report: Report, *, name: str) -> dict[str, Any]:
    """Import ml-10m: ratings.dat, movies.dat (double colons, UTF-8), without features of users.

    Returns the settings of dataset.toml.
    """
    _check_size(archive, name)
    users = archive.find("users.dat")
    if users:
        raise UserError(
            f"{archive.where}: contains {users[0].name}, which ml-10m does not have; use: nextitem import ml-1m"
        )
    _import_dat(archive, folder, report)
    return _settings(None)


def import_csv(archive: Archive, folder: Path, report: Report, *, name: str) -> dict[str, Any]:
    """Import ml-20m and later: ratings.csv and movies.csv with a header. Returns the settings of dataset.toml."""
    _check_size(archive, name)
    ratings, movies = archive.require("ratings.csv"), archive.require("movies.csv")
    with archive.file(ratings) as file:
        frame = scan_text(file, ratings, columns=["userId", "movieId", "rating", "timestamp"]).select(
            pl.col("userId").alias("user_id"),
            pl.col("movieId").alias("item_id"),
            finite_number(pl.col("rating")).alias("rating"),
            pl.col("timestamp").cast(pl.Int64, strict=False),
        )
        what = "ratings without user, movie, rating or time"
        frame = usable_rows(frame, pl.any_horizontal(pl.all().is_null()), report, what=what, member=ratings)
        write_lazily(frame, folder / "interactions.parquet", ratings)
    with archive.file(movies) as file:
        table = collect_rows(scan_text(file, movies, columns=["movieId", "title", "genres"]), movies).select(
            pl.col("movieId").alias("item_id"), "title", _genres(pl.col("genres")), _year(pl.col("title"))
        )
    _write(table, "item_id", folder / "items.parquet", report, where=movies.name)
    return _settings(None)


def _check_size(archive: Archive, name: str) -> None:
    """Raise UserError if the archive contains a MovieLens data set of another size."""
    for member in archive.members:
        for part in PurePosixPath(member.name).parts[:-1]:
            actual = _FOLDERS.get(part.lower())
            if actual is not None and actual != name:
                raise UserError(f"{archive.where}: this is {actual}, not {name}: nextitem import {actual}")


def _import_dat(archive: Archive, folder: Path, report: Report) -> None:
    """Write the tables of ratings.dat and movies.dat."""
    _write_ratings(archive, archive.require("ratings.dat"), "::", folder, report)
    movies = archive.require("movies.dat")
    rows = [[row[0], row[1], row[2].split("|")] for row in _rows(archive, movies, "::", None) if len(row) == 3]
    _write_movies(rows, folder, report, where="movies.dat")


def _rows(archive: Archive, member: Member, separator: str, encoding: str | None) -> Iterator[list[str]]:
    """Yield the fields of each line; without an encoding a line is UTF-8, or Latin-1 if it is not UTF-8."""
    for line in archive.lines(member):
        if not line.strip():
            continue
        try:
            text = line.decode(encoding or "utf-8")
        except UnicodeDecodeError:
            text = line.decode("latin-1")
        yield text.split(separator)


def _write_ratings(archive: Archive, member: Member, separator: str, folder: Path, report: Report) -> None:
    """Write interactions.parquet from lines of user, item, rating and time; skip lines that are no rating."""
    num_unreadable = 0
    with TableWriter(folder / "interactions.parquet", _RATINGS) as writer:
        for row in _rows(archive, member, separator, "latin-1"):
            report.rows += 1
            try:
                user, item, rating, timestamp = row[:4]
                values = [id_of(user), id_of(item), number_of(rating), whole_number_of(int(timestamp))]
            except ValueError:
                values = [None]
            if None in values:
                num_unreadable += 1
            else:
                writer.add(values)
    report.note_left_out(
        num_unreadable, f"lines of {member.name} that are no rating (the last, if the file is truncated)"
    )


def _write_movies(rows: list[list[Any]], folder: Path, report: Report, *, where: str) -> None:
    """Write items.parquet from rows of item id, title and genres."""
    table = pl.DataFrame(rows, schema=["item_id", "title", "genres"], orient="row")
    table = table.with_columns(
        pl.col("genres").cast(pl.List(pl.String)).list.filter(pl.element() != _NO_GENRES), _year(pl.col("title"))
    )
    _write(table.cast(_MOVIES), "item_id", folder / "items.parquet", report, where=where)  # type: ignore[arg-type]


def _write_users(rows: Iterator[list[str]], columns: list[str], folder: Path, report: Report, *, where: str) -> None:
    """Write users.parquet from rows whose first fields are `columns`."""
    people = [row[: len(columns)] for row in rows if len(row) >= len(columns)]
    table = pl.DataFrame(people, schema=dict.fromkeys(columns, pl.String), orient="row")
    _write(table, "user_id", folder / "users.parquet", report, where=where)


def _write(table: pl.DataFrame, id_column: str, file: Path, report: Report, *, where: str) -> None:
    """Write a table with one row for each id, including ids of the log that the table lacks."""
    log = file.with_name("interactions.parquet")
    unique_and_complete(table, id_column, log, report, where=where).write_parquet(file)


def _genres(joined: pl.Expr) -> pl.Expr:
    """Return the genres of a text in which bars separate them, as a list."""
    return joined.str.split("|").list.filter(~pl.element().is_in([_NO_GENRES, ""])).alias("genres")


def _year(title: pl.Expr) -> pl.Expr:
    """Return the year at the end of a title, as in "Toy Story (1995)"; null if there is none."""
    return title.str.extract(_YEAR).cast(pl.Int32).alias("year")


def _settings(users: dict[str, str] | None) -> dict[str, Any]:
    """Return the settings of dataset.toml; `users` are the types of users' features, None if there are none."""
    settings: dict[str, Any] = {
        "repeats": False,
        "interactions": {"labels": ["rating"]},
        "items": {"text": "{title}. {genres}", "features": {"genres": "categorical-list", "year": "numeric"}},
    }
    if users is not None:
        settings["users"] = {"features": users}
    return settings
