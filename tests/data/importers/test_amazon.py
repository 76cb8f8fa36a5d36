"""Import of Amazon reviews of 2014, 2018 and 2023: JSON, Python literals, ratings alone, the benchmark's split."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support.layouts import Files, Imported, Layouts

from nextitem.core.errors import UserError
from nextitem.data.importers import json_lines
from nextitem.data.protocols import make_split

PAIRS = [("A1", "B1"), ("A1", "B2"), ("A2", "B1"), ("A2", "B2")]
REVIEWS_14 = [
    {"reviewerID": user, "asin": item, "overall": 5.0, "unixReviewTime": 1369699200 + 86400 * step, "reviewText": "x"}
    for step, (user, item) in enumerate(PAIRS)
]
META_14: list[dict[str, Any]] = [
    {"asin": "B1", "title": "It's soap", "brand": "Acme", "price": 3.5, "categories": [["Beauty", "Soap"], ["Beauty"]]},
    {"asin": "B9", "title": "never bought"},
    {"asin": "B1", "title": "described again"},
]
REVIEWS_23 = [
    {"user_id": user, "parent_asin": item, "asin": item + "v", "rating": 4.0, "timestamp": 1588615855070 + step}
    for step, (user, item) in enumerate(PAIRS)
]
META_23: list[dict[str, Any]] = [
    {
        "parent_asin": "B1",
        "title": "Headset",
        "main_category": "Computers",
        "store": "Shop",
        "price": "from 12.99",
        "categories": ["Electronics", "Audio"],
        "description": ["Good.", "Loud."],
        "details": {"Brand": "Acme"},
    },
    {"parent_asin": "B2", "title": "Cable", "price": 4.5, "categories": [], "main_category": "Computers"},
]


def test_2014_reviews_with_metadata(imported: Imported, layouts: Layouts, tmp_path: Path) -> None:
    reviews = layouts.json_gz([*REVIEWS_14, {"asin": "B1", "unixReviewTime": 1}], "reviews_Beauty_5.json.gz")
    dataset, messages = imported("amazon14", reviews, layouts.literals_gz(META_14, "meta_Beauty.json.gz"))
    assert (dataset.name, dataset.repeats, len(dataset.interactions)) == ("amazon14-beauty", False, 4)
    items = dataset.catalog.table
    assert items["title"].to_list() == ["It's soap", None]
    assert items["categories"].to_list() == [["Beauty", "Soap"], None]
    assert items["price"].to_list() == [3.5, None]
    assert dataset.catalog.features == {"brand": "categorical", "price": "numeric", "categories": "categorical-list"}
    for note in (
        "left out 1 reviews without reviewerID, asin or unixReviewTime",
        "left out 1 products of meta_Beauty.json.gz that nobody in the log has reviewed",
        "left out 1 further descriptions",
        "1 items of the log are not described in meta_Beauty.json.gz",
    ):
        assert note in messages
    assert "left out 1 reviews without" in (tmp_path / "data" / "README.md").read_text()


def test_2014_reads_the_5_core_if_a_folder_contains_all_reviews_too(imported: Imported, layouts: Layouts) -> None:
    layouts.json_gz(REVIEWS_14, "reviews_Beauty_5.json.gz")
    layouts.json_gz([*REVIEWS_14, {**REVIEWS_14[0], "asin": "B7"}], "reviews_Beauty.json.gz")
    files = [layouts.root / "reviews_Beauty_5.json.gz", layouts.root / "reviews_Beauty.json.gz"]
    dataset, messages = imported("amazon14", *files)
    assert dataset.catalog.num_items == 2
    assert "reviews_Beauty_5.json.gz was read, reviews_Beauty.json.gz was not" in messages


def test_ratings_alone_are_in_another_order_in_2018(imported: Imported, layouts: Layouts, tmp_path: Path) -> None:
    rows = [f"{user},{item},5.0,{1369699200 + step}" for step, (user, item) in enumerate(PAIRS)]
    layouts.folder({"ratings_Beauty.csv": "\n".join([*rows, "A3,B1,,", "A1,B1,2.0,1469699200"])}, "a")
    dataset, messages = imported("amazon14", tmp_path / "a" / "ratings_Beauty.csv")
    assert dataset.users.ids.external.to_list() == ["A1", "A2"]
    assert "left out 1 ratings without user, product, rating or time" in messages
    assert "left out 1 later reviews of a product by the same user" in messages
    swapped = [",".join([row.split(",")[1], row.split(",")[0], *row.split(",")[2:]]) for row in rows]
    layouts.folder({"Beauty.csv": "\n".join(swapped)}, "b")
    (tmp_path / "data").rename(tmp_path / "first")
    dataset, _ = imported("amazon18", tmp_path / "b")
    assert dataset.users.ids.external.to_list() == ["A1", "A2"]


def test_2018_metadata(imported: Imported, layouts: Layouts) -> None:
    reviews = layouts.json_gz(REVIEWS_14, "Office_Products_5.json.gz")
    meta = {
        "asin": "B1",
        "title": "<span>Pen</span>",
        "brand": "Acme",
        "price": "$1,012.99",
        "category": ["Office", "Pens</span></span>"],
        "description": ["Blue.", "Wet."],
    }
    dataset, _ = imported("amazon18", reviews, layouts.json_gz([meta], "meta_Office_Products.json.gz"))
    row = dataset.catalog.table.row(0, named=True)
    assert (row["title"], row["price"], row["categories"], row["description"]) == (
        "Pen",
        1012.99,
        ["Office"],
        "Blue. Wet.",
    )
    assert dataset.name == "amazon18-office-products"


def test_2023_reviews(imported: Imported, layouts: Layouts) -> None:
    again = {**REVIEWS_23[0], "timestamp": 1688615855070, "rating": 1.0}
    reviews = layouts.json_gz([again, *REVIEWS_23], "Video_Games.jsonl.gz")
    dataset, messages = imported("amazon23", reviews, layouts.json_gz(META_23, "meta_Video_Games.jsonl.gz"))
    assert (dataset.name, len(dataset.interactions)) == ("amazon23-video-games", 4)
    assert dataset.interactions.columns["rating"].to_list() == [4.0] * 4, "the earliest review of a pair is kept"
    assert "left out 1 later reviews of a product by the same user" in messages
    assert dataset.interactions.timestamps is not None
    assert dataset.interactions.timestamps[0] == 1588615855070
    items = dataset.catalog.table
    assert items["brand"].to_list() == ["Acme", None]
    assert items["price"].to_list() == [None, 4.5]
    assert items["categories"].to_list() == [["Electronics", "Audio"], ["Computers"]]
    assert items["description"].to_list() == ["Good. Loud.", None]


@pytest.mark.parametrize("has_header", [True, False])
@pytest.mark.parametrize("has_history", [True, False])
def test_2023_benchmark(imported: Imported, layouts: Layouts, has_header: bool, has_history: bool) -> None:
    def part(rows: list[tuple[str, str, int, str]]) -> str:
        header = ["user_id,parent_asin,rating,timestamp" + ",history" * has_history] if has_header else []
        lines = [f"{user},{item},5.0,{time}" + f",{past}" * has_history for user, item, time, past in rows]
        return "\n".join([*header, *lines]) + "\n"

    start = 1588615855070
    files: Files = {
        "Toys.train.csv": part([("A1", "B1", start, ""), ("A2", "B2", start, ""), ("A2", "B3", start + 1, "B2")]),
        "Toys.valid.csv": part([("A1", "B2", start + 2, "B1"), ("A2", "B1", start + 2, "B2 B3")]),
        "Toys.test.csv": part([("A1", "B3", start + 3, "B1 B2"), ("A2", "B4", start + 3, "B0 B2 B3 B1")]),
    }
    dataset, messages = imported("amazon23", layouts.folder(files))
    assert len(dataset.interactions) == 7
    assert "--protocol published" in messages
    assert ("the histories of 1 users contain items" in messages) == has_history
    split = make_split(dataset, "published")
    assert split.test.num_requests == 2


def test_2023_ratings_alone(imported: Imported, layouts: Layouts) -> None:
    rows = [f"{user},{item},5.0,{1588615855070 + step}" for step, (user, item) in enumerate(PAIRS)]
    text = "\n".join(["user_id,parent_asin,rating,timestamp", *rows])
    dataset, messages = imported("amazon23", layouts.gz(text, "Toys_and_Games.csv.gz"))
    assert (dataset.name, len(dataset.interactions)) == ("amazon23-toys-and-games", 4)
    assert "no metadata file was given" in messages


def test_several_logs_are_refused(imported: Imported, layouts: Layouts) -> None:
    files = layouts.folder({"A.jsonl": json.dumps(REVIEWS_23[0]), "B.jsonl": json.dumps(REVIEWS_23[0])})
    with pytest.raises(UserError, match=r"several logs \(A\.jsonl, B\.jsonl\)"):
        imported("amazon23", files)
    with pytest.raises(UserError, match=r"files \.test\.csv"):
        imported("amazon23", layouts.folder({"A.train.csv": "x", "A.valid.csv": "x"}, "split"))
    two = layouts.folder({"reviews_A.json": "{}", "reviews_B.json": "{}"}, "two")
    with pytest.raises(UserError, match="several categories"):
        imported("amazon14", two)


def test_literals_are_parsed_and_never_evaluated(imported: Imported, layouts: Layouts) -> None:
    reviews = layouts.json_gz(REVIEWS_14, "reviews_Beauty_5.json.gz")
    meta = layouts.gz("__import__('os').system('touch evil')\n", "meta_Beauty.json.gz")
    with pytest.raises(UserError, match="line 1, are neither JSON objects nor Python dicts"):
        imported("amazon14", reviews, meta)
    assert not Path("evil").exists()


def test_a_few_unreadable_lines_are_counted(imported: Imported, layouts: Layouts) -> None:
    lines = [json.dumps({**REVIEWS_14[0], "reviewerID": f"A{number}"}) for number in range(300)]
    lines[7], lines[9] = '{"reviewerID": "A7", "asin": ', "[1, 2]"
    lines.append(json.dumps(REVIEWS_14[1]))
    dataset, messages = imported("amazon14", layouts.gz("\n".join(lines), "reviews_Beauty_5.json.gz"))
    assert len(dataset.interactions) == 299
    assert "left out 2 unreadable lines of reviews_Beauty_5.json.gz (the first: line 8)" in messages


@pytest.mark.parametrize("cut", [0.3, 0.9])
def test_a_truncated_file_is_named(imported: Imported, layouts: Layouts, tmp_path: Path, cut: float) -> None:
    whole = gzip.compress("".join(json.dumps({**row, "x": str(row)}) + "\n" for row in REVIEWS_14 * 100).encode())
    file = layouts.root / "reviews_Beauty_5.json.gz"
    file.write_bytes(whole[: int(len(whole) * cut)])
    with pytest.raises(UserError, match=r"reviews_Beauty_5\.json\.gz: cut off or damaged"):
        imported("amazon14", file)
    assert not (tmp_path / "data").exists()


def test_wide_and_long_files_are_written_in_chunks(
    imported: Imported, layouts: Layouts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nextitem.data.importers import tables

    monkeypatch.setattr(tables, "CHUNK_ROWS", 3)
    rows = [{**REVIEWS_14[0], "reviewerID": f"A{number}", "asin": f"B{number % 2}"} for number in range(20)]
    dataset, _ = imported("amazon14", layouts.json_gz(rows, "reviews_Beauty.json.gz"))
    assert len(dataset.interactions) == 20
    log = pl.read_parquet(tmp_path / "data" / "interactions.parquet")
    assert log["user_id"].to_list() == [f"A{number}" for number in range(20)], "rows keep their order"


def test_texts_written_by_python_2_and_impossible_times(imported: Imported, layouts: Layouts) -> None:
    rows = [
        *REVIEWS_14,
        {**REVIEWS_14[0], "reviewerID": "A\ud83d\ude00"},
        {**REVIEWS_14[0], "reviewerID": "A4", "unixReviewTime": 10**30},
        {**REVIEWS_14[0], "reviewerID": "A5", "unixReviewTime": True},
    ]
    dataset, messages = imported("amazon14", layouts.json_gz(rows, "reviews_Beauty_5.json.gz"))
    assert dataset.users.ids.external.to_list() == ["A1", "A2", "A\U0001f600"]
    assert "left out 2 reviews without" in messages


def test_values_of_json_are_parsed_to_ids_numbers_and_texts() -> None:
    assert json_lines.id_of(" a ") == " a "
    assert json_lines.id_of(7) == "7"
    assert json_lines.id_of("") is None
    assert json_lines.text_of("a\ud800") == "a\ufffd"
    assert json_lines.number_of("$1,299.50") == 1299.5
    assert json_lines.number_of("nan") is None
    assert json_lines.number_of("free") is None
    assert json_lines.text_of(" a ") == "a"
    assert json_lines.text_of(True) is None
    assert json_lines.texts_of([["a", "b"], ["a"], None, " "]) == ["a", "b"]
