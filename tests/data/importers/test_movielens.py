"""Import of MovieLens in every layout: ids as in the files, genres, years, and archives of another size."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from support.layouts import Files, Imported, Layouts

from nextitem.core.errors import UserError

RATINGS_1M = "1::10::5::978300760\n1::20::3::978302109\n2::20::4::978300000\n2::10::1::978400000\n"
ML_1M: Files = {
    "ml-1m/ratings.dat": RATINGS_1M,
    "ml-1m/movies.dat": "10::Léon (1994)::Action|Drama\n20::Toy Story::Animation\n".encode("latin-1"),
    "ml-1m/users.dat": "1::F::1::10::48067\n2::M::56::16::70072\n",
}
CSV = {
    "ratings.csv": "userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n1,29,3.5,1112484000\n2,2,1,1112480000\n",
    "movies.csv": 'movieId,title,genres\n2,"Jumanji, the (1995)",Adventure|Fantasy\n29,City,(no genres listed)\n',
}


def test_1m(imported: Imported, layouts: Layouts) -> None:
    dataset, messages = imported("ml-1m", layouts.zip(ML_1M))
    assert (dataset.name, dataset.repeats, len(dataset.interactions)) == ("ml-1m", False, 4)
    assert dataset.catalog.ids.external.to_list() == ["10", "20"]
    assert dataset.catalog.titles().to_list() == ["Léon (1994)", "Toy Story"]
    assert dataset.catalog.table["year"].to_list() == [1994, None]
    assert dataset.catalog.text is not None
    assert dataset.catalog.text[0] == "Léon (1994). Action, Drama"
    assert dataset.users.features == {"gender": "categorical", "age": "categorical", "occupation": "categorical"}
    assert dataset.interactions.columns["rating"].to_list() == [5.0, 3.0, 4.0, 1.0]
    assert "4 rows were read; the published log has 1,000,209" in messages
    assert "is not the published archive" in messages


def test_100k(imported: Imported, layouts: Layouts) -> None:
    files: Files = {
        "u.data": "1\t10\t5\t881250949\n2\t20\t3\t881250950\n2\t10\t3\t881250951\nbroken\n",
        "u.item": "10|Café (1995)|01-Jan-1995||url|0|1\n20|B|01-Jan-1995||url|1|1\n".encode("latin-1"),
        "u.user": "1|24|M|technician|85711\n2|53|F|other|94043\n",
        "u.genre": "Action|0\nDrama|1\n",
    }
    dataset, messages = imported("ml-100k", layouts.folder(files))
    assert dataset.catalog.table["genres"].to_list() == [["Drama"], ["Action", "Drama"]]
    assert dataset.catalog.titles()[0] == "Café (1995)"
    assert dataset.users.features["age"] == "numeric"
    assert "left out 1 lines of u.data that are no rating" in messages


def test_10m_is_utf8_and_has_no_users(imported: Imported, layouts: Layouts) -> None:
    files: Files = {
        "ml-10M100K/ratings.dat": ML_1M["ml-1m/ratings.dat"],
        "ml-10M100K/movies.dat": "10::Léon (1994)::Action\n20::B (2001)::Drama\n",
        "ml-10M100K/tags.dat": "1::10::good::978300760\n",
    }
    dataset, _ = imported("ml-10m", layouts.zip(files))
    assert dataset.catalog.titles().to_list() == ["Léon (1994)", "B (2001)"]
    assert dataset.users.features == {}


@pytest.mark.parametrize("name", ["ml-20m", "ml-25m", "ml-32m", "ml-latest", "ml-latest-small"])
@pytest.mark.parametrize("is_folder", [True, False])
def test_csv(imported: Imported, layouts: Layouts, name: str, is_folder: bool) -> None:
    files: Files = {f"{name}/{inside}": content for inside, content in CSV.items()}
    dataset, _ = imported(name, layouts.folder(files) if is_folder else layouts.zip(files))
    assert (dataset.name, len(dataset.interactions)) == (name, 3)
    assert dataset.catalog.table["genres"].to_list() == [["Adventure", "Fantasy"], []]
    assert dataset.catalog.table["year"].to_list() == [1995, None]


def test_rows_that_are_no_rating_are_counted(imported: Imported, layouts: Layouts) -> None:
    files: Files = {**CSV, "ratings.csv": str(CSV["ratings.csv"]) + "3,,4,1112480000\n3,2,four,1112480000\n"}
    dataset, messages = imported("ml-latest", layouts.folder(files))
    assert len(dataset.interactions) == 3
    assert "left out 2 ratings without user, movie, rating or time" in messages


@pytest.mark.parametrize(
    "ratings",
    [
        b"userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n1,2\xff9,3.5,1112484000\n",
        b"userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n1,2,3,4,5,6,7\n",
        b'userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n1,"2,3.5,1112484000\n',
        b"userId,movieId,rating,timestamp\n",
    ],
)
def test_a_damaged_table_is_named(imported: Imported, layouts: Layouts, tmp_path: Path, ratings: bytes) -> None:
    with pytest.raises(UserError, match=r"ratings\.csv: (cannot be read as a table|contains no usable row)"):
        imported("ml-latest", layouts.folder({**CSV, "ratings.csv": ratings}))
    assert not (tmp_path / "data").exists()


def test_rows_with_invalid_numbers_are_left_out(imported: Imported, layouts: Layouts) -> None:
    more = f"{CSV['ratings.csv']}3,2,nan,1112486027\n3,2,inf,1112486027\n3,2,5,{10**30}\n"
    dataset, messages = imported("ml-latest", layouts.folder({**CSV, "ratings.csv": more}))
    assert len(dataset.interactions) == 3
    assert "left out 3 ratings without" in messages
    lines = f"{RATINGS_1M}3::10::nan::1\n3::10::5::{10**30}\n3::::5::978300760\n"
    (layouts.root / "data").rename(layouts.root / "first")
    dataset, messages = imported("ml-1m", layouts.zip({**ML_1M, "ml-1m/ratings.dat": lines}))
    assert len(dataset.interactions) == 4
    assert "left out 3 lines of ml-1m/ratings.dat that are no rating" in messages


def test_every_item_of_the_log_gets_one_row(imported: Imported, layouts: Layouts) -> None:
    movies = "movieId,title,genres\n2,First,Drama\n2,Second,Drama\n,Nameless,Drama\n"
    dataset, messages = imported("ml-latest", layouts.folder({**CSV, "movies.csv": movies}))
    assert dataset.catalog.titles().to_list() == ["First", "29"]
    assert "left out 2 rows of movies.csv without item_id, or with one that occurs earlier" in messages
    assert "1 values of item_id in the log are not described in movies.csv" in messages


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ml-10m", "this is ml-1m, not ml-10m: nextitem import ml-1m"),
        ("ml-20m", r"no ratings\.csv, movies\.csv; ml-20m expects .*it looks like ml-1m, .*: nextitem import ml-1m"),
        ("ml-100k", r"contains no u\.data"),
    ],
)
def test_an_archive_of_another_size_is_named(layouts: Layouts, imported: Imported, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        imported(name, layouts.zip(ML_1M))


def test_ids_are_not_changed(imported: Imported, layouts: Layouts, tmp_path: Path) -> None:
    imported("ml-latest", layouts.folder(CSV))
    log = pl.read_parquet(tmp_path / "data" / "interactions.parquet")
    assert log["user_id"].to_list() == ["1", "1", "2"]
    assert log["item_id"].dtype == pl.String
