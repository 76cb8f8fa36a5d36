"""Every mistake in a data set's files raises a UserError that names file, column, row and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nextitem.core.errors import UserError
from nextitem.data.readers import load_dataset

Files = dict[str, Any]
GOOD = {"user_id": [1, 1, 2, 2], "item_id": [5, 6, 5, 7], "timestamp": [10, 20, 30, 40]}
CSV = "user_id,item_id,timestamp\n1,5,10\n1,6,20\n2,5,30\n2,7,40\n"
ITEMS = {"item_id": [5, 6, 7], "title": ["a", "b", "c"]}
IMPRESSIONS = {"impression_id": [1, 1, 2], "item_id": [5, 6, 5], "timestamp": [10, 10, 20], "click": [0, 1, 0]}


def write(folder: Path, files: Files) -> Path:
    """Write files into a folder, and return its path; frames (dicts) become Parquet, texts and bytes are unchanged."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        elif isinstance(content, str):
            (folder / name).write_text(content, encoding="utf-8")
        else:
            pl.DataFrame(content, strict=False).write_parquet(folder / name)
    return folder


def without(column: str) -> dict[str, list[int]]:
    return {name: values for name, values in GOOD.items() if name != column}


def log(**columns: Any) -> Files:
    return {"interactions.parquet": GOOD | columns}


def with_items(**columns: Any) -> Files:
    return {"interactions.parquet": GOOD, "items.parquet": ITEMS | columns}


def toml(text: str, files: Files | None = None) -> Files:
    return {**(files or with_items()), "dataset.toml": text}


# name -> files, parts of the message
CASES: dict[str, tuple[Files, tuple[str, ...]]] = {
    "no tables": ({"dataset.toml": ""}, ("neither interactions nor impressions", "interactions.csv")),
    "both formats": (
        {"interactions.parquet": GOOD, "interactions.csv": CSV},
        ("interactions.parquet", "interactions.csv", "remove one"),
    ),
    "no item_id": ({"interactions.parquet": without("item_id")}, ("interactions.parquet", "'item_id'", "rename")),
    "no user_id": ({"interactions.parquet": without("user_id")}, ("'user_id'", "user_id = ", "dataset.toml")),
    "no order": ({"interactions.parquet": without("timestamp")}, ("'timestamp'", "missing")),
    "semicolons": ({"interactions.csv": CSV.replace(",", ";")}, ("interactions.csv", "user_id;item_id", "commas")),
    "float ids": (log(user_id=[1.0, 1.0, 2.0, 2.5]), ("'user_id'", "Float64", "integers or text")),
    "null user": (log(user_id=[1, 1, None, 2]), ("'user_id'", "row 3", "missing", "remove the row")),
    "null user in csv": ({"interactions.csv": CSV.replace("2,5,30", ",5,30")}, ("'user_id'", "row 3 (line 4)")),
    "null item": (log(item_id=[5, 6, 5, None]), ("'item_id'", "row 4", "missing")),
    "empty text id": (log(item_id=["a", "", "b", "c"]), ("'item_id'", "row 2", "missing")),
    "null session": (log(session_id=[1, None, 2, 2]), ("'session_id'", "row 2", "missing")),
    "line after a quoted line break": (
        {"interactions.csv": 'user_id,item_id,position\n"a\nb",5,0\n1,,1\n'},
        ("'item_id'", "row 2 (line 4)"),
    ),
    "unknown item": (log(item_id=[5, 6, 5, 9]) | {"items.parquet": ITEMS}, ("row 4", "9", "--drop-unknown-items")),
    "unknown item shown": (
        {"impressions.parquet": IMPRESSIONS, "items.parquet": {"item_id": [5]}},
        ("impressions.parquet", "'item_id'", "row 2", "--drop-unknown-items"),
    ),
    "duplicate item": (with_items(item_id=[5, 6, 5]), ("items.parquet", "'item_id'", "row 3", "second time")),
    "duplicate user": (
        log() | {"users.parquet": {"user_id": [1, 1], "country": ["x", "y"]}},
        ("users.parquet", "'user_id'", "row 2", "one row"),
    ),
    "no items": (with_items(item_id=[], title=[]), ("items.parquet", "no items")),
    "negative time": (log(timestamp=[10, -20, 30, 40]), ("'timestamp'", "row 2", "-20", "1970")),
    "time after 2100": (log(timestamp=[10, 20, 30, 5 * 10**9]), ("row 4", "seconds", "2099")),
    "microseconds": (log(timestamp=[1_700_000_000_000_000] * 4), ("row 1", "milliseconds", "2099")),
    "seconds and milliseconds": (
        log(timestamp=[1_700_000_000_000, 1_700_000_000, 1_700_000_000_000, 1_700_000_000_000]),
        ("row 2", "1700000000", "seconds", "one unit"),
    ),
    "infinite time": (log(timestamp=[1.5, 2.0, float("inf"), 4.0]), ("'timestamp'", "row 3", "inf", "seconds")),
    "no time in text": (
        {"interactions.csv": CSV.replace("30", "soon")},
        ("'timestamp'", "row 3", "'soon'", "number", "seconds or milliseconds since 1970"),
    ),
    "no date in text": (
        {"interactions.csv": "user_id,item_id,timestamp\n1,5,2020-01-31\n2,6,31.01.2020\n"},
        ("'timestamp'", "row 2 (line 3)", "'31.01.2020'", "2024-05-31"),
    ),
    "ancient datetime": (
        {"interactions.csv": "user_id,item_id,timestamp\n1,5,1850-01-01\n2,6,2020-01-01\n"},
        ("'timestamp'", "row 1 (line 2)", "1850-01-01", "1970"),
    ),
    "null time without position": (log(timestamp=[10, None, 30, 40]), ("'timestamp'", "row 2", "position")),
    "null position": (log(position=[0, None, 0, 1]), ("'position'", "row 2", "fill it in")),
    "position of text": (
        {"interactions.csv": "user_id,item_id,position\n1,5,0\n\n1,6,second\n2,5,1\n"},
        ("'position'", "row 2 (line 4)", "'second'", "no number"),
    ),
    "fractional position": (log(position=[0, 0.5, 0, 1]), ("'position'", "row 2", "0.5", "whole numbers")),
    "empty log": ({"interactions.parquet": pl.DataFrame(GOOD).clear()}, ("interactions.parquet", "no events")),
    "empty csv log": ({"interactions.csv": "user_id,item_id,timestamp\n"}, ("interactions.csv", "no events")),
    "empty file": ({"interactions.csv": ""}, ("interactions.csv", "empty", "name the columns")),
    "one user": (log(user_id=[1, 1, 1, 1]), ("interactions.parquet", "one user", "at least two users")),
    "one item": (log(item_id=[5, 5, 5, 5]), ("interactions.parquet", "one item", "at least two items")),
    "one session": (
        {"interactions.parquet": {"session_id": [1, 1], "item_id": [5, 6], "position": [0, 1]}},
        ("one session",),
    ),
    "one request": (
        {"impressions.parquet": {name: values[:2] for name, values in IMPRESSIONS.items()}},
        ("impressions.parquet", "fewer than two impression_ids"),
    ),
    "not utf-8": (
        {"interactions.csv": "user_id,item_id,timestamp\n1,5,10\n1,Café,20\n".encode("latin-1")},
        ("interactions.csv", "'item_id'", "row 2 (line 3)", "UTF-8"),
    ),
    "header not utf-8": (
        {"interactions.csv": CSV.replace("timestamp", "größe").encode("latin-1")},
        ("interactions.csv", "line 1", "header", "UTF-8"),
    ),
    "open quote": ({"interactions.csv": CSV + '3,"5,50\n'}, ("interactions.csv", "close every quote")),
    "too many fields": ({"interactions.csv": CSV + "3,5,50,oops\n"}, ("row 5 (line 6)", "4 fields", "quotes")),
    "truncated parquet": ({"interactions.parquet": b"PAR1" + b"\0" * 40}, ("interactions.parquet", "truncated")),
    "empty parquet": ({"interactions.parquet": b""}, ("interactions.parquet", "truncated")),
    "unknown key": (toml("repeat = true"), ("dataset.toml", "'repeat'", "repeats")),
    "unknown key in a table": (toml('[items]\ntexts = "{title}"'), ("[items]", "'texts'", "text, features")),
    "wrong type of setting": (toml('repeats = "no"'), ("dataset.toml", "repeats", "'no'")),
    "table that is none": (toml("items = 3"), ("items = 3", "[items]")),
    "wrong feature type": (toml('[items]\nfeatures = { title = "words" }'), ("features.title", "'words'")),
    "broken toml": (toml("repeats = \n"), ("dataset.toml", "line 1")),
    "settings without file": (toml('[users]\nfeatures = { a = "numeric" }'), ("[users]", "no file users")),
    "template column": (toml('[items]\ntext = "{name}"'), ("items.parquet", "'name'", "title")),
    "template braces": (toml('[items]\ntext = "{title"'), ("[items] text", "{title")),
    "template format": (toml('[items]\ntext = "{title:>10}"'), ("[items] text", "nothing but the name")),
    "feature column": (toml('[items]\nfeatures = { size = "numeric" }'), ("[items] features", "'size'", "title")),
    "numeric feature of text": (
        toml('[items]\nfeatures = { title = "numeric" }'),
        ("items.parquet", "'title'", "row 1", "'a'", "[items] features"),
    ),
    "categorical feature of lists": (
        toml('[items]\nfeatures = { tags = "categorical" }', with_items(tags=[["x"], ["y"], []])),
        ("'tags'", "lists", "categorical-list"),
    ),
    "list feature of text": (
        toml(
            '[items]\nfeatures = { tags = "categorical-list" }',
            {"interactions.csv": CSV, "items.csv": 'item_id,tags\n5,"[""x""]"\n6,x;y\n7,\n'},
        ),
        ("items.csv", "'tags'", "row 2 (line 3)", "'x;y'", '["red", "blue"]'),
    ),
    "list feature of broken json": (
        toml(
            '[items]\nfeatures = { tags = "categorical-list" }',
            {"interactions.csv": CSV, "items.csv": 'item_id,tags\n5,"[""x""]"\n6,[x]\n7,\n'},
        ),
        ("'tags'", "row 2 (line 3)", "'[x]'"),
    ),
    "release column": (toml('[items]\nreleased = "born"'), ("[items] released", "'born'")),
    "rename of nothing": (toml('[items]\nrename = { title = "name" }'), ("items.parquet", "'name'", "item_id")),
    "rename of both": (
        toml('[items]\nrename = { title = "name" }', with_items(name=["x", "y", "z"])),
        ("'title'", "'name'", "drop one"),
    ),
    "renamed column": (
        toml(
            '[interactions]\nrename = { user_id = "CustomerID" }',
            {"interactions.parquet": without("user_id") | {"CustomerID": [1, None, 2, 2]}},
        ),
        ("'CustomerID' (user_id)", "row 2"),
    ),
    "no action column": (toml('[interactions]\npositive_actions = ["buy"]'), ("'action'", "positive_actions")),
    "unheard action": (
        toml('[interactions]\npositive_actions = ["buy"]', log(action=["view", "purchase", "view", "view"])),
        ("'action'", "'buy'", "purchase, view"),
    ),
    "search without query": (
        log(action=["view", "search", "view", "view"], item_id=[5, None, 5, 7], query=["", None, "", ""]),
        ("'query'", "row 2", "search"),
    ),
    "search with item": (
        log(action=["view", "search", "view", "view"], query=["", "lamp", "", ""]),
        ("'item_id'", "row 2", "leave item_id empty"),
    ),
    "split part": (log(split=["train", "dev", "test", "test"]), ("'split'", "row 2", "'dev'", "valid")),
    "label of text": (
        toml('[interactions]\nlabels = ["like"]', log(like=["1", "yes", "maybe", ""])),
        ("'like'", "row 3", "'maybe'", "[interactions] labels"),
    ),
    "label column": (
        toml('[impressions]\nlabels = ["buy"]', {"impressions.parquet": IMPRESSIONS}),
        ("labels", "'buy'"),
    ),
    "infinite price": (
        toml('[interactions]\ncontext = { price = "numeric" }', log(price=[1.0, 2.0, float("inf"), 3.0])),
        ("'price'", "row 3", "finite"),
    ),
    "propensity": (
        {"impressions.parquet": IMPRESSIONS | {"propensity": [0.5, 1.5, 0.1]}},
        ("'propensity'", "row 2", "1.5", "0 to 1"),
    ),
    "impressions without time": (
        {"impressions.parquet": {n: v for n, v in IMPRESSIONS.items() if n != "timestamp"}},
        ("impressions.parquet", "'timestamp'"),
    ),
    "content lengths": (with_items(content_image=[[1.0, 2.0], [1.0], [0.0, 0.0]]), ("'content_image'", "row 2", "1 ")),
    "content not finite": (
        with_items(content_image=[[1.0, 2.0], [1.0, 2.0], [0.0, float("nan")]]),
        ("'content_image'", "row 3", "finite"),
    ),
    "content missing": (with_items(content_image=[[1.0], None, [2.0]]), ("'content_image'", "row 2", "missing")),
    "users of anonymous sessions": (
        {
            "interactions.parquet": {"session_id": [1, 2], "item_id": [5, 6], "position": [0, 0]},
            "users.parquet": {"user_id": [1]},
        },
        ("users.parquet", "add user_id"),
    ),
}


@pytest.mark.parametrize(("files", "parts"), CASES.values(), ids=CASES.keys())
def test_a_mistake_is_refused_with_its_place_and_remedy(tmp_path: Path, files: Files, parts: tuple[str, ...]) -> None:
    folder = write(tmp_path / "set", files)
    with pytest.raises(UserError) as caught:
        load_dataset(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert "set" in message
    missing = [part for part in parts if part not in message]
    assert not missing, message


def test_files_without_mistakes_are_read(tmp_path: Path) -> None:
    for number, files in enumerate([with_items(), {"interactions.csv": CSV}, {"impressions.parquet": IMPRESSIONS}]):
        assert load_dataset(write(tmp_path / str(number), files)).catalog.num_items >= 2


def test_a_path_that_is_not_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_dataset(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file, not a folder"):
        load_dataset(tmp_path / "file")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_parquet_truncated_at_any_length_is_refused(tmp_path: Path, share: float) -> None:
    folder = write(tmp_path / "set", {"interactions.parquet": {n: v * 500 for n, v in GOOD.items()}})
    path = folder / "interactions.parquet"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match=r"interactions\.parquet.*write it again"):
        load_dataset(folder)


def test_damaged_parquet_pages_raise_a_user_error(tmp_path: Path) -> None:
    columns = {"user_id": [f"user {n % 97}" for n in range(5000)], "item_id": [n % 89 for n in range(5000)]}
    folder = write(tmp_path / "set", {"interactions.parquet": columns | {"timestamp": list(range(5000))}})
    path = folder / "interactions.parquet"
    content = bytearray(path.read_bytes())
    content[8:200] = b"\xff" * 192
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"interactions\.parquet.*write it again"):
        load_dataset(folder)


def test_rows_of_unknown_items_are_dropped_and_noted(tmp_path: Path) -> None:
    files = log(item_id=[5, 6, 9, 7]) | {"items.parquet": ITEMS}
    dataset = load_dataset(write(tmp_path / "set", files), drop_unknown_items=True)
    assert dataset.interactions.item_ids.tolist() == [1, 2, 3]
    assert dataset.interactions.timestamps is not None
    assert dataset.interactions.timestamps.tolist() == [10_000, 20_000, 40_000]
    note = next(note for note in dataset.notes if "left out 1 rows" in note)
    assert "items.parquet" in note
