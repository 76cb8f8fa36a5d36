"""The fingerprint changes with everything that affects training or evaluation, and with nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.data import fingerprint
from nextitem.data.readers import dataset_from_frames, load_dataset

Frames = dict[str, pl.DataFrame]
DAY = 86_400_000
SETTINGS: dict[str, Any] = {
    "repeats": False,
    "interactions": {
        "positive_actions": ["purchase"],
        "labels": ["like"],
        "context": {"shop": "categorical", "loudness": "numeric", "tags": "categorical-list"},
    },
    "items": {
        "text": "{title} by {author}",
        "features": {"brand": "categorical", "price": "numeric", "colours": "categorical-list", "blurb": "text"},
        "released": "first_seen",
    },
    "users": {"features": {"country": "categorical", "joined": "timestamp"}},
    "impressions": {"labels": ["click"], "context": {"device": "categorical"}},
}


def frames() -> Frames:
    """Return the tables of a small data set with a column of every kind."""
    return {
        "interactions": pl.DataFrame(
            {
                "user_id": [1, 1, 1, 2, 2, 3, 3],
                "item_id": [10, 11, 12, 10, 13, 11, None],
                "timestamp": [1_700_000_000_000 + DAY * day for day in range(7)],
                "session_id": ["s1", "s1", "s2", "s3", "s4", "s5", "s5"],
                "action": ["view", "purchase", "view", "purchase", "view", "purchase", "search"],
                "quantity": [1, 2, 1, 1, 1, 1, None],
                "query": [None, None, None, None, None, None, "lamp"],
                "split": ["train", "train", "valid", "train", "test", "train", "train"],
                "like": [1, 0, 1, None, 0, 1, None],
                "shop": ["north", "south", None, "north", "north", "south", None],
                "loudness": [0.5, 1.25, None, 2.0, 0.1, 3.75, None],
                "tags": [["new"], ["new", "sale"], [], None, ["sale"], ["new"], None],
                "unread": ["a", "b", "c", "d", "e", "f", "g"],
            }
        ),
        "items": pl.DataFrame(
            {
                "item_id": [10, 11, 12, 13],
                "title": ["Lamp", "Chair", "Table", "Shelf"],
                "author": ["Ann", "Bo", "Cy", "Di"],
                "category": ["light", "seat", "table", "shelf"],
                "brand": ["x", "y", None, "x"],
                "price": [9.99, 20.0, 30.5, None],
                "colours": [["red"], ["red", "blue"], [], None],
                "blurb": ["bright", "soft", None, "long"],
                "first_seen": [1_600_000_000_000 + DAY * day for day in range(4)],
                "content_image": [[0.5, 0.25], [0.5, 0.75], [1.0, 0.0], [0.0, 1.0]],
                "url": ["a", "b", "c", "d"],
            }
        ),
        "users": pl.DataFrame(
            {
                "user_id": [1, 2, 3],
                "country": ["de", "fr", None],
                "joined": [1_650_000_000_000 + DAY * day for day in range(3)],
                "nickname": ["a", "b", "c"],
            }
        ),
        "impressions": pl.DataFrame(
            {
                "impression_id": [1, 1, 2, 2],
                "user_id": [1, 1, 2, 2],
                "item_id": [10, 11, 12, 13],
                "timestamp": [1_700_000_000_000 + DAY * day for day in range(4)],
                "slot": [1, 2, 1, 2],
                "propensity": [0.5, 0.25, 0.5, 0.25],
                "policy": ["a", "a", "b", "b"],
                "click": [1, 0, 0, 1],
                "device": ["web", "web", "app", "app"],
            }
        ),
    }


def fingerprint_of(tables: Frames, configuration: dict[str, Any] = SETTINGS) -> str:
    return dataset_from_frames(tables, configuration).fingerprint


def replaced(table: str, column: str, row: int, value: Any) -> Frames:
    """Return the tables with another value in one cell."""
    tables = frames()
    values = tables[table][column].to_list()
    assert values[row] != value
    values[row] = value
    tables[table] = tables[table].with_columns(pl.Series(column, values, dtype=tables[table].schema[column]))
    return tables


CELLS = [
    ("interactions", "user_id", 5, 2),
    ("interactions", "item_id", 0, 13),
    ("interactions", "timestamp", 2, 1_700_000_000_000 + 2 * DAY + 1_000),
    ("interactions", "session_id", 1, "s2"),
    ("interactions", "action", 0, "purchase"),
    ("interactions", "action", 0, None),
    ("interactions", "query", 6, "desk"),
    ("interactions", "query", 0, "desk"),
    ("interactions", "split", 0, "test"),
    ("interactions", "like", 0, 0),
    ("interactions", "like", 3, 0),
    ("interactions", "shop", 0, "south"),
    ("interactions", "shop", 2, "north"),
    ("interactions", "loudness", 0, 0.75),
    ("interactions", "loudness", 2, 0.0),
    ("interactions", "tags", 0, ["sale"]),
    ("interactions", "tags", 3, []),
    ("items", "title", 0, "Lamps"),
    ("items", "author", 0, "Anne"),
    ("items", "category", 0, "lights"),
    ("items", "brand", 0, "y"),
    ("items", "price", 0, 9.98),
    ("items", "price", 3, 0.0),
    ("items", "colours", 1, ["blue", "red"]),
    ("items", "colours", 2, None),
    ("items", "blurb", 2, ""),
    ("items", "first_seen", 0, 1_600_000_000_000 + 7 * DAY),
    ("items", "content_image", 0, [0.5, 0.375]),
    ("users", "country", 0, "fr"),
    ("users", "joined", 0, 1_650_000_000_000 + 9 * DAY),
    ("impressions", "impression_id", 1, 2),
    ("impressions", "user_id", 0, 3),
    ("impressions", "item_id", 0, 13),
    ("impressions", "timestamp", 0, 1_700_000_000_000 + DAY // 2),
    ("impressions", "slot", 0, 3),
    ("impressions", "propensity", 0, 0.125),
    ("impressions", "policy", 0, "b"),
    ("impressions", "click", 0, 0),
    ("impressions", "device", 0, "app"),
]


@pytest.mark.parametrize(("table", "column", "row", "value"), CELLS)
def test_every_value_with_an_effect_is_covered(table: str, column: str, row: int, value: Any) -> None:
    assert fingerprint_of(replaced(table, column, row, value)) != fingerprint_of(frames())


@pytest.mark.parametrize(
    ("table", "column", "row", "value"),
    [
        ("interactions", "unread", 0, "z"),
        ("interactions", "quantity", 0, 2),
        ("items", "url", 0, "z"),
        ("users", "nickname", 0, "z"),
    ],
)
def test_columns_that_nothing_reads_are_not_covered(table: str, column: str, row: int, value: Any) -> None:
    assert fingerprint_of(replaced(table, column, row, value)) == fingerprint_of(frames())


def test_names_of_sessions_and_impressions_are_not_covered() -> None:
    tables = frames()
    tables["interactions"] = tables["interactions"].with_columns(session_id="x" + pl.col("session_id").str.reverse())
    tables["impressions"] = tables["impressions"].with_columns(impression_id=9 - pl.col("impression_id"))
    assert fingerprint_of(tables) == fingerprint_of(frames())


def changed_settings(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    configuration: dict[str, Any] = json.loads(json.dumps(SETTINGS))
    change(configuration)
    return configuration


@pytest.mark.parametrize(
    "change",
    [
        lambda configuration: configuration.update(repeats=True),
        lambda configuration: configuration["interactions"].pop("positive_actions"),
        lambda configuration: configuration["interactions"].update(positive_actions=["view"]),
        lambda configuration: configuration["interactions"].pop("labels"),
        lambda configuration: configuration["interactions"]["context"].pop("shop"),
        lambda configuration: configuration["items"].update(text="{title}"),
        lambda configuration: configuration["items"].pop("released"),
        lambda configuration: configuration["items"]["features"].pop("brand"),
        lambda configuration: configuration["items"]["features"].update(blurb="categorical"),
        lambda configuration: configuration["users"]["features"].pop("country"),
        lambda configuration: configuration["impressions"].update(labels=[]),
        lambda configuration: configuration["impressions"]["context"].pop("device"),
    ],
)
def test_every_setting_is_covered(change: Callable[[dict[str, Any]], Any]) -> None:
    assert fingerprint_of(frames(), changed_settings(change)) != fingerprint_of(frames())


def test_the_name_is_not_covered() -> None:
    assert fingerprint_of(
        frames(), changed_settings(lambda configuration: configuration.update(name="other"))
    ) == fingerprint_of(frames())
    every_action = changed_settings(
        lambda configuration: configuration["interactions"].update(positive_actions=["purchase", "view"])
    )
    no_choice = changed_settings(lambda configuration: configuration["interactions"].pop("positive_actions"))
    assert fingerprint_of(frames(), every_action) == fingerprint_of(
        frames(), no_choice
    )  # with both, every event may be a target


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rows_is_not_covered_if_it_has_no_effect(seed: int) -> None:
    tables = frames()
    for name in ("interactions", "items", "users"):
        tables[name] = tables[name].sample(fraction=1.0, shuffle=True, seed=seed)
    assert fingerprint_of(tables) == fingerprint_of(frames())


def test_the_order_of_rows_is_covered_if_it_decides_the_order_of_events() -> None:
    rows_with_one_time = {"user_id": [1, 1, 2], "item_id": [5, 6, 5], "timestamp": [9, 9, 9]}
    assert fingerprint_of({"interactions": pl.DataFrame(rows_with_one_time)}, {}) != fingerprint_of(
        {"interactions": pl.DataFrame(rows_with_one_time).reverse()}, {}
    )
    # Sessions of an undated log are split in the order of the file.
    undated = pl.DataFrame(
        {"user_id": [1, 1, 2], "session_id": ["a", "b", "c"], "item_id": [5, 6, 5], "position": [0, 1, 0]}
    )
    assert fingerprint_of({"interactions": undated}, {}) != fingerprint_of({"interactions": undated.reverse()}, {})


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_the_file_format_is_not_covered(tmp_path: Path, form: str) -> None:
    for name, table in frames().items():
        if form == "parquet":
            table.write_parquet(tmp_path / f"{name}.parquet")
            continue
        lists = [column for column, kind in table.schema.items() if isinstance(kind, pl.List)]
        texts = [
            pl.Series(column, [None if row is None else json.dumps(row) for row in table[column].to_list()])
            for column in lists
        ]
        table.with_columns(*texts).write_csv(tmp_path / f"{name}.csv")
    (tmp_path / "dataset.toml").write_text(tomli_w.dumps(SETTINGS))
    assert load_dataset(tmp_path).fingerprint == fingerprint_of(frames())


def test_types_of_columns_are_not_covered() -> None:
    tables = frames()
    tables["interactions"] = tables["interactions"].cast(
        {
            "user_id": pl.Int16,
            "item_id": pl.UInt32,
            "like": pl.Boolean,
            "action": pl.Categorical,
            "shop": pl.Enum(["south", "west", "north"]),
            "loudness": pl.Float32,
        }
    )
    event_times = pl.from_epoch("timestamp", time_unit="ms").cast(pl.Datetime("us"))
    tables["interactions"] = tables["interactions"].with_columns(event_times)
    tables["items"] = tables["items"].cast(
        {"price": pl.Float32, "brand": pl.Categorical, "category": pl.Enum(["table", "shelf", "seat", "light"])}
    )
    tables["items"] = tables["items"].with_columns(pl.col("content_image").cast(pl.Array(pl.Float32, 2)))
    tables["users"] = tables["users"].with_columns(
        pl.from_epoch("joined", time_unit="ms").dt.replace_time_zone("UTC"), pl.col("user_id").cast(pl.Int32)
    )
    assert fingerprint_of(tables) == fingerprint_of(frames())


def test_a_large_whole_number_is_covered_exactly() -> None:
    def numbers(value: float) -> str:
        items = frames()["items"].with_columns(price=pl.Series([value, 1, 2, 3]))
        return fingerprint_of(frames() | {"items": items})

    assert numbers(2**40) != numbers(2**40 + 1)
    assert numbers(float(2**40)) == numbers(2**40)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["text", "categorical", "categorical-list", "numeric"]))
def test_columns_have_one_fingerprint_only_if_they_are_equal(data: st.DataObject, kind: str) -> None:
    short = st.text("ab\x00", max_size=2)
    value = {
        "text": short,
        "categorical": short,
        "categorical-list": st.lists(short, max_size=2),
        "numeric": st.sampled_from([0.0, 1.0, 0.5, 2.0, 0.25]),
    }[kind]
    column = st.lists(st.none() | value, min_size=3, max_size=3)
    first, second = data.draw(column), data.draw(column)
    types: dict[str, pl.DataType] = {"categorical-list": pl.List(pl.String), "numeric": pl.Float64()}
    stored = types.get(kind, pl.String())
    log = pl.DataFrame({"user_id": [1, 2, 2], "item_id": [1, 2, 3], "position": [0, 0, 1]})
    fingerprints = [
        fingerprint_of(
            {"interactions": log, "items": pl.DataFrame({"item_id": [1, 2, 3], "f": pl.Series(values, dtype=stored)})},
            {"items": {"features": {"f": kind}}},
        )
        for values in (first, second)
    ]
    assert (fingerprints[0] == fingerprints[1]) == (first == second)


def test_the_size_of_parts_does_not_change_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fingerprint_of(frames())
    monkeypatch.setattr(fingerprint, "ROWS_AT_ONCE", 8)  # a multiple of 8, since missing values are packed into bits
    assert fingerprint_of(frames()) == whole


def test_sessions_are_numbered_by_their_first_event() -> None:
    session_numbers = fingerprint._session_numbers
    assert session_numbers(np.array([4, 4, 2, 9, 2]), is_dated=True).tolist() == [0, 0, 1, 2, 1]
    assert session_numbers(np.array([4, 4, 2, 9, 2]), is_dated=False).tolist() == [1, 1, 0, 2, 0]
    assert session_numbers(np.array([], np.int64), is_dated=True).tolist() == []
