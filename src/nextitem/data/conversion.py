"""Public archives as dataset folders: MovieLens, Amazon 2014, Online Retail.

Each function takes the downloaded files and the folder to fill, writes its tables, and returns the content of
dataset.toml. Rows keep the order of the source, so ties in time stay as published.
"""

from __future__ import annotations

import ast
import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element, iterparse

import polars as pl

from nextitem.core.errors import UserError

MAX_MEMBER = 4 << 30  # bytes of one unpacked file: the largest of ours has 533 MB, a bomb has more


def movielens_100k(files: list[Path], folder: Path) -> dict[str, object]:
    """u.data (tabs), u.item and u.user (bars, Latin-1)."""
    with zipfile.ZipFile(files[0]) as archive:
        ratings = [line.split("\t") for line in _lines(archive, "u.data", "utf-8")]
        items = [line.split("|") for line in _lines(archive, "u.item", "latin-1")]
        users = [line.split("|") for line in _lines(archive, "u.user", "latin-1")]
        genres = [line.split("|")[0] for line in _lines(archive, "u.genre", "latin-1") if "|" in line]
    _write_ratings(ratings, folder)
    table = [
        {
            "item_id": int(row[0]),
            "title": row[1],
            "genres": [genre for genre, flag in zip(genres, row[5:], strict=False) if flag == "1"],
        }
        for row in items
    ]
    pl.DataFrame(table, schema=_MOVIES).write_parquet(folder / "items.parquet")
    people = [
        {"user_id": int(row[0]), "age": row[1], "gender": row[2], "occupation": row[3], "zip_code": row[4]}
        for row in users
    ]
    pl.DataFrame(people).write_parquet(folder / "users.parquet")
    return _movielens_settings(users=True)


def movielens_1m(files: list[Path], folder: Path) -> dict[str, object]:
    """ratings.dat, movies.dat, users.dat (double colons, Latin-1)."""
    with zipfile.ZipFile(files[0]) as archive:
        ratings = [line.split("::") for line in _lines(archive, "ratings.dat", "latin-1")]
        items = [line.split("::") for line in _lines(archive, "movies.dat", "latin-1")]
        users = [line.split("::") for line in _lines(archive, "users.dat", "latin-1")]
    _write_ratings(ratings, folder)
    table = [{"item_id": int(row[0]), "title": row[1], "genres": row[2].split("|")} for row in items]
    pl.DataFrame(table, schema=_MOVIES).write_parquet(folder / "items.parquet")
    people = [
        {"user_id": int(row[0]), "gender": row[1], "age": row[2], "occupation": row[3], "zip_code": row[4]}
        for row in users
    ]
    pl.DataFrame(people).write_parquet(folder / "users.parquet")
    return _movielens_settings(users=True)


def movielens_20m(files: list[Path], folder: Path) -> dict[str, object]:
    """ratings.csv and movies.csv."""
    with zipfile.ZipFile(files[0]) as archive:
        ratings = pl.read_csv(_member(archive, "ratings.csv"))
        movies = pl.read_csv(_member(archive, "movies.csv"))
    ratings.rename({"userId": "user_id", "movieId": "item_id"}).select(
        "user_id", "item_id", "rating", "timestamp"
    ).write_parquet(folder / "interactions.parquet")
    movies.select(
        pl.col("movieId").alias("item_id"), "title", pl.col("genres").str.split("|").alias("genres")
    ).write_parquet(folder / "items.parquet")
    return _movielens_settings(users=False)


def amazon(files: list[Path], folder: Path) -> dict[str, object]:
    """reviews_X_5.json.gz and meta_X.json.gz: lines of JSON, and lines of Python literals."""
    reviews = [
        (row["reviewerID"], row["asin"], float(row["overall"]), int(row["unixReviewTime"]))
        for row in _json_lines(files[0])
    ]
    log = pl.DataFrame(reviews, schema=["user_id", "item_id", "rating", "timestamp"], orient="row")
    log.write_parquet(folder / "interactions.parquet")
    wanted = set(log["item_id"].to_list())
    described = {row["asin"]: row for row in _json_lines(files[1]) if row.get("asin") in wanted}
    table = [_product(item, described.get(item, {})) for item in sorted(wanted)]
    schema: dict[str, pl.DataType | type[pl.DataType]] = {
        "item_id": pl.String,
        "title": pl.String,
        "brand": pl.String,
        "price": pl.Float64,
        "categories": pl.List(pl.String),
        "description": pl.String,
    }
    pl.DataFrame(table, schema=schema).write_parquet(folder / "items.parquet")
    return {
        "repeats": False,
        "items": {
            "text": "{title}. {brand}. {categories}",
            "features": {"brand": "categorical", "price": "numeric", "categories": "categorical-list"},
        },
    }


def online_retail(files: list[Path], folder: Path) -> dict[str, object]:
    """Online Retail.xlsx: product lines of registered customers; cancellations (invoices C...) are context."""
    with zipfile.ZipFile(files[0]) as archive:
        sheet = io.BytesIO(_member(archive, "Online Retail.xlsx").read())
    rows = _sheet_rows(sheet)
    header = next(rows)
    names = [header[key] for key in sorted(header, key=_column_number)]
    expected = [
        "InvoiceNo",
        "StockCode",
        "Description",
        "Quantity",
        "InvoiceDate",
        "UnitPrice",
        "CustomerID",
        "Country",
    ]
    if names != expected:
        raise UserError(f"Online Retail.xlsx has the columns {', '.join(names)}; expected {', '.join(expected)}")
    letters = sorted(header, key=_column_number)
    records = [[row.get(letter) for letter in letters] for row in rows]
    lines = pl.DataFrame(records, schema=dict.fromkeys(expected, pl.String), orient="row").filter(
        pl.col("CustomerID").is_not_null()
        # Five digits, perhaps with letters: a product. Postage, fees and manual entries have other codes.
        & pl.col("StockCode").str.contains(r"^\d{5}")
    )
    # Excel counts days from 1899-12-30.
    milliseconds = ((pl.col("InvoiceDate").cast(pl.Float64) - 25569) * 1440).round().cast(pl.Int64) * 60_000
    log = lines.select(
        pl.col("CustomerID").cast(pl.Float64).cast(pl.Int64).alias("user_id"),
        pl.col("StockCode").alias("item_id"),
        milliseconds.alias("timestamp"),
        pl.when(pl.col("InvoiceNo").str.starts_with("C"))
        .then(pl.lit("cancel"))
        .otherwise(pl.lit("purchase"))
        .alias("action"),
        pl.col("InvoiceNo").alias("session_id"),
        pl.col("Quantity").cast(pl.Float64).cast(pl.Int64).alias("quantity"),
        pl.col("UnitPrice").cast(pl.Float64).alias("price"),
    )
    log.write_parquet(folder / "interactions.parquet")
    titles = lines.group_by("StockCode").agg(
        pl.col("Description").str.strip_chars().drop_nulls().mode().sort().first().alias("title"),
        pl.col("UnitPrice").cast(pl.Float64).median().alias("price"),
    )
    titles.rename({"StockCode": "item_id"}).sort("item_id").write_parquet(folder / "items.parquet")
    people = lines.group_by("CustomerID").agg(pl.col("Country").first().alias("country"))
    people.select(pl.col("CustomerID").cast(pl.Float64).cast(pl.Int64).alias("user_id"), "country").sort(
        "user_id"
    ).write_parquet(folder / "users.parquet")
    return {
        "repeats": True,
        "interactions": {"positive_actions": ["purchase"], "context": {"quantity": "numeric", "price": "numeric"}},
        "items": {"text": "{title}", "features": {"price": "numeric"}},
        "users": {"features": {"country": "categorical"}},
    }


_MOVIES: dict[str, pl.DataType | type[pl.DataType]] = {
    "item_id": pl.Int64,
    "title": pl.String,
    "genres": pl.List(pl.String),
}


def _movielens_settings(*, users: bool) -> dict[str, object]:
    settings: dict[str, object] = {
        "repeats": False,
        "items": {"text": "{title}. {genres}", "features": {"genres": "categorical-list"}},
    }
    if users:
        settings["users"] = {"features": {"gender": "categorical", "age": "categorical", "occupation": "categorical"}}
    return settings


def _write_ratings(rows: list[list[str]], folder: Path) -> None:
    columns = ["user_id", "item_id", "rating", "timestamp"]
    table = pl.DataFrame([row[:4] for row in rows], schema=dict.fromkeys(columns, pl.String), orient="row")
    table.select(pl.col("user_id", "item_id", "timestamp").cast(pl.Int64), pl.col("rating").cast(pl.Float64)).select(
        columns
    ).write_parquet(folder / "interactions.parquet")


def _product(item: str, row: dict[str, Any]) -> dict[str, Any]:
    """One product's columns; categories are the distinct names on all of its paths, in order."""
    names = dict.fromkeys(name for path in row.get("categories") or [] for name in path)
    price = row.get("price")
    return {
        "item_id": item,
        "title": row.get("title"),
        "brand": row.get("brand"),
        "price": None if price is None else float(price),
        "categories": list(names),
        "description": row.get("description"),
    }


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Lines of JSON, or of Python literals (parsed, never evaluated)."""
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    row = json.loads(line) if line.startswith('{"') else ast.literal_eval(line.strip())
                except (ValueError, SyntaxError):
                    raise UserError(f"{file.name}, line {number}: neither JSON nor a literal; fetch it again") from None
                yield row
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{file.name} is damaged ({error}); fetch it again") from None


def _member(archive: zipfile.ZipFile, name: str) -> io.BufferedReader:
    """The file `name` of an archive, wherever it lies in it; nothing is ever unpacked to a path."""
    found = [info for info in archive.infolist() if PurePosixPath(info.filename).name == name and not info.is_dir()]
    if not found:
        raise UserError(f"the archive has no {name}; it holds {', '.join(archive.namelist()[:5])}")
    if found[0].file_size > MAX_MEMBER:
        raise UserError(f"{name} would unpack to {found[0].file_size:,} bytes, more than it can have")
    return io.BufferedReader(archive.open(found[0]))  # type: ignore[arg-type]


def _lines(archive: zipfile.ZipFile, name: str, encoding: str) -> list[str]:
    with io.TextIOWrapper(_member(archive, name), encoding=encoding, newline="\n") as text:
        return [line.rstrip("\r\n") for line in text if line.strip()]


_NAMESPACE = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def _sheet_rows(workbook: io.BytesIO) -> Iterator[dict[str, str]]:
    """Rows of the first sheet of an .xlsx workbook: column letters -> text; empty cells are left out."""
    with zipfile.ZipFile(workbook) as archive:
        shared = ["".join(entry.itertext()) for entry in _elements(archive, "sharedStrings.xml", "si")]
        for row in _elements(archive, "sheet1.xml", "row"):
            cells = {}
            for cell in row.iter(f"{_NAMESPACE}c"):
                value = cell.find(f"{_NAMESPACE}v")
                text = "".join(cell.itertext()) if value is None else value.text
                if text:
                    letters = re.sub(r"\d", "", cell.get("r", ""))
                    cells[letters] = shared[int(text)] if cell.get("t") == "s" else text
            yield cells


def _elements(archive: zipfile.ZipFile, name: str, tag: str) -> Iterator[Element]:
    """Elements of a part of a workbook, one at a time; each is forgotten once it is used."""
    for _, element in iterparse(_member(archive, name)):
        if element.tag == f"{_NAMESPACE}{tag}":
            yield element
            element.clear()


def _column_number(letters: str) -> int:
    number = 0
    for letter in letters:
        number = 26 * number + ord(letter) - ord("A") + 1
    return number
