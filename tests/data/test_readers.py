"""Reading a data set: numbering, order, times, ids, texts, and real data sets."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.core.catalog import ColumnEncoding
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.data import events
from nextitem.data.describe import describe
from nextitem.data.readers import dataset_from_frames, load_dataset
from nextitem.data.requests import context_of, user_context

MINUTE_MS = 60_000
BASE_MS = 1_700_000_000_000


def load(folder: Path, **files: Any) -> Dataset:
    """Write a folder of tables and load it: frames (dicts) become Parquet, texts become CSV or TOML."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        if name == "toml":
            (folder / "dataset.toml").write_text(content, encoding="utf-8")
        elif isinstance(content, str):
            (folder / f"{name}.csv").write_text(content, encoding="utf-8")
        else:
            pl.DataFrame(content).write_parquet(folder / f"{name}.parquet")
    return load_dataset(folder)


def rows(dataset: Dataset) -> list[tuple[Any, Any]]:
    """Return (user id, item id) of every event, in the owner's ids."""
    log = dataset.interactions
    return list(zip(dataset.users.ids.decode(log.user_ids), dataset.catalog.ids.decode(log.item_ids), strict=True))


def test_events_are_sorted_by_user_time_position_and_row(tmp_path: Path) -> None:
    dataset = load(
        tmp_path,
        interactions={
            "user_id": ["b", "a", "a", "a", "b", "a"],
            "item_id": ["v", "z", "y", "x", "w", "u"],
            "timestamp": [50, 20, 20, 10, 40, 20],
            "position": [0, 2, 1, 0, 0, 1],
        },
    )
    assert rows(dataset) == [("a", "x"), ("a", "y"), ("a", "u"), ("a", "z"), ("b", "w"), ("b", "v")]
    assert dataset.interactions.timestamps is not None
    assert dataset.interactions.timestamps.tolist() == [10_000, 20_000, 20_000, 20_000, 40_000, 50_000]


def test_ties_keep_the_order_of_rows_in_long_logs() -> None:
    # An unstable sort moves equal keys only in arrays that are long enough to be divided.
    count = 20_000
    users = np.random.default_rng(0).integers(0, 50, count)
    frame = pl.DataFrame({"user_id": users, "item_id": np.arange(count), "timestamp": np.full(count, 7)})
    log = dataset_from_frames({"interactions": frame}).interactions
    assert (np.diff(log.item_ids)[np.diff(log.user_ids) == 0] > 0).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.booleans())
def test_event_order_is_that_of_a_plain_stable_sort(seed: int, keys: int, has_wide_values: bool) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 40))
    users = rng.integers(1, 5, count).astype(np.int32)
    columns = [rng.integers(0, 2**61 if has_wide_values else 4, count) for _ in range(keys)]
    expected = sorted(range(count), key=lambda row: (users[row], *(column[row] for column in columns)))
    order = events.event_order(users, *columns)
    assert (list(range(count)) if order is None else order.tolist()) == expected


def test_position_alone_orders_events(tmp_path: Path) -> None:
    dataset = load(tmp_path, interactions={"user_id": [1, 1, 2], "item_id": [5, 6, 7], "position": [1, 0, 0]})
    assert rows(dataset) == [(1, 6), (1, 5), (2, 7)]
    assert dataset.interactions.timestamps is None


def test_an_event_without_a_time_has_the_place_of_the_event_before_it(tmp_path: Path) -> None:
    dataset = load(
        tmp_path,
        interactions={
            "user_id": [1, 1, 1, 2, 1],
            "item_id": [1, 2, 3, 4, 5],
            "timestamp": [300, None, 100, 1, None],
            "position": [2, 1, 0, 0, -1],
        },
    )
    # By position: item 5 (no time, nothing before it), 3 (t=100), 2 (no time: after 3), 1 (t=300).
    assert rows(dataset) == [(1, 5), (1, 3), (1, 2), (1, 1), (2, 4)]
    assert dataset.interactions.timestamps is None
    assert any("2 events have no time" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("times", "expected_ms"),
    [
        (pl.Series([5, 10]), [5_000, 10_000]),
        (pl.Series([99_999_999_999 // 25, 0]), [99_999_999_999 // 25 * 1000, 0]),
        (pl.Series([BASE_MS, BASE_MS + 1]), [BASE_MS, BASE_MS + 1]),
        (pl.Series([BASE_MS // 1000] * 2, dtype=pl.UInt32), [BASE_MS] * 2),
        (pl.Series([BASE_MS, BASE_MS + 7]).cast(pl.Datetime("ms")), [BASE_MS, BASE_MS + 7]),
        (pl.Series([BASE_MS * 1000 + 1999] * 2).cast(pl.Datetime("us")), [BASE_MS + 1] * 2),
        (pl.Series([BASE_MS * 10**6] * 2).cast(pl.Datetime("ns")), [BASE_MS] * 2),
        (pl.Series([19_000, 19_001]).cast(pl.Date), [19_000 * 86_400_000, 19_001 * 86_400_000]),
        (
            pl.Series(["2020-01-01T12:00:00Z", "2020-01-01 13:00:00+01:00"]),
            [1_577_880_000_000, 1_577_880_000_000],
        ),
        (pl.Series(["2020-01-01 12:00", "2020-01-01"]), [1_577_880_000_000, 1_577_836_800_000]),
        (pl.Series(["2020-01-01 12:00:00.5", "2020-01-01T00:00:00"]), [1_577_880_000_500, 1_577_836_800_000]),
    ],
    ids=str,
)
def test_times_become_milliseconds(times: pl.Series, expected_ms: list[int]) -> None:
    frame = pl.DataFrame({"user_id": [1, 2], "item_id": [1, 2], "timestamp": times})
    log = dataset_from_frames({"interactions": frame}).interactions
    assert log.timestamps is not None
    assert log.timestamps.tolist() == expected_ms


def test_datetimes_with_a_zone_are_converted_to_utc() -> None:
    times = pl.Series(["2020-01-01 12:00", "2020-01-02 12:00"]).str.to_datetime().dt.replace_time_zone("Asia/Tokyo")
    frame = pl.DataFrame({"user_id": [1, 2], "item_id": [1, 2], "timestamp": times})
    log = dataset_from_frames({"interactions": frame}).interactions
    assert log.timestamps is not None
    assert log.timestamps.tolist() == [1_577_847_600_000, 1_577_934_000_000]


def test_times_finer_than_milliseconds_decide_the_order() -> None:
    times = pl.Series([BASE_MS * 1000 + 2, BASE_MS * 1000 + 1, 0]).cast(pl.Datetime("us"))
    frame = pl.DataFrame({"user_id": [1, 1, 2], "item_id": [1, 2, 3], "timestamp": times})
    assert rows(dataset_from_frames({"interactions": frame})) == [(1, 2), (1, 1), (2, 3)]


def test_csv_ids_keep_leading_zeros_and_match_their_items(tmp_path: Path) -> None:
    dataset = load(
        tmp_path,
        interactions="user_id,item_id,position\n001,00123,0\n002,123,0\n",
        items="item_id,title\n123,short\n00123,long\n",
    )
    assert rows(dataset) == [("001", "00123"), ("002", "123")]
    assert dataset.catalog.titles().to_list() == ["long", "short"]


def test_text_ids_of_the_log_do_not_become_numbers_of_the_items(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'007' is not in"):
        load(
            tmp_path,
            interactions={"user_id": [1, 2], "item_id": ["007", "8"], "position": [0, 0]},
            items={"item_id": [7, 8]},
        )


def test_ids_beyond_64_bits_are_read(tmp_path: Path) -> None:
    huge = 2**70
    dataset = load(
        tmp_path,
        interactions=f"user_id,item_id,position\n{huge},1,0\n{huge + 1},2,0\n",
    )
    assert dataset.users.ids.external.to_list() == [str(huge), str(huge + 1)]
    unsigned = pl.Series([2**64 - 1, 3], dtype=pl.UInt64)
    frame = pl.DataFrame({"user_id": unsigned, "item_id": [-5, 2**62], "position": [0, 0]})
    dataset = dataset_from_frames({"interactions": frame})
    assert sorted(rows(dataset)) == [("18446744073709551615", -5), ("3", 2**62)]


def test_same_log_in_csv_and_parquet_is_the_same_data_set(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "user_id": ["Ünal", "李", "Ünal"],
            "item_id": [10, 11, 11],
            "timestamp": [1_700_000_000, 1_700_000_060, 1_700_000_120],
            "action": ["view", "purchase", "purchase"],
            "price": [1.5, 2.0, None],
        }
    )
    items = pl.DataFrame({"item_id": [10, 11], "title": ['5,5 inch "frame"', "7"]})
    (tmp_path / "csv").mkdir()
    frame.write_csv(tmp_path / "csv/interactions.csv", include_bom=True)
    items.write_csv(tmp_path / "csv/items.csv")
    text = load_dataset(tmp_path / "csv")
    columns = load(tmp_path / "parquet", interactions=frame, items=items)
    assert text.fingerprint == columns.fingerprint
    assert text.interactions.columns.equals(columns.interactions.columns)
    assert text.catalog.text is not None
    assert columns.catalog.text is not None
    assert text.catalog.text.to_list() == columns.catalog.text.to_list() == ['5,5 inch "frame"', "7"]


def test_the_fingerprint_depends_on_events_but_not_on_the_order_of_rows() -> None:
    frame = pl.DataFrame({"user_id": [1, 1, 2], "item_id": [1, 2, 3], "timestamp": [1, 2, 3]})
    first = dataset_from_frames({"interactions": frame}).fingerprint
    assert dataset_from_frames({"interactions": frame.reverse()}).fingerprint == first
    changed = frame.with_columns(timestamp=pl.Series([1, 2, 4]))
    assert dataset_from_frames({"interactions": changed}).fingerprint != first


def test_anonymous_sessions_are_read_as_users(tmp_path: Path) -> None:
    dated = {"session_id": ["s9", "s1", "s9"], "item_id": [1, 2, 3], "timestamp": [10, 30, 20]}
    dataset = load(tmp_path / "dated", interactions=dated)
    assert dataset.anonymous
    assert rows(dataset) == [("s1", 2), ("s9", 1), ("s9", 3)]
    undated = {"session_id": ["s9", "s1", "s9"], "item_id": [1, 2, 3], "position": [1, 0, 0]}
    # Without times, the order of appearance is the only order of sessions.
    order = [("s9", 3), ("s9", 1), ("s1", 2)]
    assert rows(load(tmp_path / "undated", interactions=undated)) == order
    partly = undated | {"timestamp": [10, 20, None]}
    assert rows(load(tmp_path / "partly", interactions=partly)) == order


def test_sessions_of_users_are_numbered_in_order_of_appearance(tmp_path: Path) -> None:
    dataset = load(
        tmp_path,
        interactions={
            "user_id": [2, 2, 1, 1],
            "session_id": ["b", "a", "a", "b"],
            "item_id": [1, 2, 3, 4],
            "timestamp": [1, 2, 3, 4],
        },
    )
    assert dataset.interactions.columns["session_id"].to_list() == [3, 4, 1, 2]
    assert not dataset.anonymous


def test_searches_have_no_item_and_are_never_targets(tmp_path: Path) -> None:
    dataset = load(
        tmp_path,
        interactions="user_id,item_id,position,action,query\n1,5,0,view,\n1,,1,search,lamp\n2,6,0,purchase,\n",
        toml='[interactions]\npositive_actions = ["purchase"]',
    )
    log = dataset.interactions
    assert log.item_ids.tolist() == [1, 0, 2]
    assert log.columns["query"].to_list() == [None, "lamp", None]
    assert log.positive is not None
    assert log.positive.tolist() == [False, False, True]
    assert log.targets_only().item_ids.tolist() == [2]


def test_text_template_joins_lists_and_leaves_nulls_out(tmp_path: Path) -> None:
    dataset = load(
        tmp_path,
        interactions={"user_id": [1, 2], "item_id": [1, 2], "position": [0, 0]},
        items={
            "item_id": [2, 1],
            "title": ["second", None],
            "attributes": [["x", "y"], ["z"]],
            "price": [1.5, 2.0],
        },
        toml='[items]\ntext = "{title}. {attributes} ({price}) {{"',
    )
    assert dataset.catalog.text is not None
    assert dataset.catalog.text.to_list() == [". z (2.0) {", "second. x, y (1.5) {"]


def test_text_without_a_template_consists_of_the_text_columns(tmp_path: Path) -> None:
    log = {"user_id": [1, 2], "item_id": [1, 2], "position": [0, 0]}
    items = {"item_id": [1, 2], "brand": ["b", None], "title": ["t", "u"], "category": [7, 8]}
    dataset = load(tmp_path / "a", interactions=log, items=items)
    assert dataset.catalog.text is not None
    assert dataset.catalog.text.to_list() == ["t. b", "u. "]
    assert load(tmp_path / "b", interactions=log).catalog.text is None


def test_features_releases_labels_context_and_rename(tmp_path: Path) -> None:
    dataset = load(
        tmp_path,
        interactions="CustomerID,item_id,timestamp,like,device\n7,1,10,1,phone\n8,2,20,,web\n",
        items='item_id,tags,size,born\n2,"[""a"", ""b""]",3,2020-01-01\n1,,2.5,\n',
        users="user_id,country\n8,GB\n9,FR\n",
        toml="""
name = "small"
repeats = false
[interactions]
labels = ["like"]
context = { device = "categorical" }
rename = { user_id = "CustomerID" }
[items]
features = { tags = "categorical-list", size = "numeric" }
released = "born"
[users]
features = { country = "categorical" }
""",
    )
    assert (dataset.name, dataset.repeats, dataset.labels) == ("small", False, ("like",))
    assert dataset.interactions.columns["like"].to_list() == [1, None]
    assert dataset.interactions.columns["device"].to_list() == ["phone", "web"]
    assert dataset.catalog.table["tags"].to_list() == [None, ["a", "b"]]
    assert dataset.catalog.released_ms is not None
    assert dataset.catalog.released_ms.tolist() == [0, 1_577_836_800_000]
    assert dataset.users.table["country"].to_list() == [None, "GB", "FR"]
    assert dataset.users.ids.external.to_list() == [7, 8, 9]


LOGGED = {"user_id": [1, 1, 2, 3], "item_id": [1, 2, 1, 2], "timestamp": [1_700_000_000 + row for row in range(4)]}


def test_a_users_table_without_common_ids_is_refused_and_missing_users_are_noted() -> None:
    settings = {"users": {"features": {"country": "categorical"}}}
    floats = {"user_id": ["1.0", "2.0", "3.0"], "country": ["FR", "NL", "DE"]}
    with pytest.raises(
        UserError, match=r"none of the 3 users .* like '1.0' here and like '1' in the data; write them in the same way"
    ):
        dataset_from_frames({"interactions": LOGGED, "users": floats}, settings)
    # No model reads features that are not declared: a note is enough.
    notes = dataset_from_frames({"interactions": LOGGED, "users": floats}).notes
    assert any("has 0 of the 3 users" in note for note in notes)
    some_users = {"user_id": [2, 3, 9], "country": ["NL", "DE", "FR"]}
    notes = dataset_from_frames({"interactions": LOGGED, "users": some_users}, settings).notes
    assert notes == ("data/users: has 2 of the 3 users of the data; the others have no features",)
    all_users = {"user_id": [1.0, 2.0, 3.0], "country": ["FR", "NL", "DE"]}
    dataset = dataset_from_frames({"interactions": LOGGED, "users": all_users}, settings)
    assert not dataset.notes
    assert dataset.users.table["country"].to_list() == ["FR", "NL", "DE"]


def test_users_of_impressions_join_too() -> None:
    impressions = {"impression_id": [1, 2], "user_id": ["a", "b"], "item_id": [1, 2], "timestamp": [1_700_000_000] * 2}
    settings = {"users": {"features": {"country": "categorical"}}}
    users = {"user_id": ["a", "b"], "country": ["FR", "NL"]}
    assert not dataset_from_frames({"impressions": impressions, "users": users}, settings).notes


def test_spaces_at_the_ends_of_ids_are_removed_and_noted(tmp_path: Path) -> None:
    log = LOGGED | {"item_id": ["a", "b ", " a", "b"], "user_id": pl.Series(["x", "x ", "y", "z"]).cast(pl.Categorical)}
    items = {"item_id": ["a ", "b"], "title": ["One", "Two"]}
    dataset = dataset_from_frames({"interactions": log, "items": items})
    assert rows(dataset) == [("x", "a"), ("x", "b"), ("y", "a"), ("z", "b")]
    assert any("column 'item_id': spaces at the ends of 2 ids" in note for note in dataset.notes)
    assert any("data/items: column 'item_id': spaces at the ends of 1 ids" in note for note in dataset.notes)
    blank = LOGGED | {"item_id": ["a", " ", "b", "a"]}
    with pytest.raises(UserError, match="'item_id', row 2: the id is missing"):
        dataset_from_frames({"interactions": blank})


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (["article", "video", None], ["article", "video", None]),
        ([120, 80, 3], [120, 80, 3]),
        ([["a", "b"], ["a"], []], [["a", "b"], ["a"], []]),
        (['["a"]', "[]", "x"], ['["a"]', "[]", "x"]),
        ([None, None, None], [None, None, None]),
        ([[1, 2], [3, 4], [5, 6]], [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
        (["[1, 2]", "[3, 4.5]", "[-1e3, 0]"], [[1.0, 2.0], [3.0, 4.5], [-1000.0, 0.0]]),
    ],
)
def test_only_lists_of_numbers_are_content_vectors(column: list[Any], expected: list[Any]) -> None:
    items = {"item_id": [1, 2, 3], "content_type": column}
    dataset = dataset_from_frames({"interactions": LOGGED, "items": items})
    table = dataset.catalog.table
    assert table["content_type"].to_list() == expected
    is_vector = isinstance(expected[0], list) and isinstance(expected[0][0], float)
    assert (table.schema["content_type"] == pl.List(pl.Float32)) == is_vector
    missing = describe(dataset)["missing"]
    assert any("content_ columns" in words for words in missing) != is_vector


def test_a_declared_column_of_number_lists_is_not_a_content_vector() -> None:
    items = {"item_id": [1, 2, 3], "content_ids": [[1], [2, 3], []]}
    settings = {"items": {"features": {"content_ids": "categorical-list"}}}
    table = dataset_from_frames({"interactions": LOGGED, "items": items}, settings).catalog.table
    assert table["content_ids"].to_list() == [[1], [2, 3], []]
    with pytest.raises(UserError, match="or rename the column if it does not contain vectors"):
        dataset_from_frames({"interactions": LOGGED, "items": items})


def test_content_columns_stay_with_their_items(tmp_path: Path) -> None:
    dataset = load(
        tmp_path,
        interactions={"user_id": [1, 2], "item_id": [1, 2], "position": [0, 0]},
        items='item_id,content_image\n2,"[1, 2.5]"\n1,"[0.5, -1]"\n',
    )
    assert dataset.catalog.table["content_image"].to_list() == [[0.5, -1.0], [1.0, 2.5]]
    assert dataset.catalog.content is None


def test_impressions_keep_the_order_of_the_file(tmp_path: Path) -> None:
    dataset = load(
        tmp_path,
        impressions={
            "impression_id": ["r2", "r1", "r2"],
            "item_id": [6, 5, 5],
            "timestamp": [20, 10, 20],
            "user_id": [None, 4, None],
            "click": [1, 0, 0],
            "slot": [1, 1, 2],
        },
        toml='[impressions]\nlabels = ["click"]',
    )
    impressions = dataset.impressions
    assert impressions is not None
    assert impressions.request_ids.tolist() == [0, 1, 0]
    assert impressions.item_ids.tolist() == [2, 1, 1]
    assert impressions.user_ids.tolist() == [0, 1, 0]
    assert impressions.columns.columns == ["slot", "click"]
    assert len(dataset.interactions) == 0
    assert dataset.interactions.num_users == 1


def test_the_size_of_batches_does_not_change_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "user_id": rng.integers(0, 30, 500),
            "item_id": rng.integers(0, 40, 500),
            "timestamp": rng.integers(0, 1000, 500),
            "action": rng.choice(["view", "purchase"], 500),
            "session_id": rng.integers(0, 5, 500),
        }
    )
    whole = dataset_from_frames({"interactions": frame})
    monkeypatch.setattr(events, "BATCH_ROWS", 7)
    parts = dataset_from_frames({"interactions": frame})
    assert whole.fingerprint == parts.fingerprint
    assert whole.interactions.columns.equals(parts.interactions.columns)


def test_the_shop_is_read_like_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = pl.DataFrame({"user_id": [1, 2], "item_id": [1, 2], "timestamp": [1, 2], "action": ["view", "buy"]})
    shop = SimpleNamespace(
        interactions=log,
        items=pl.DataFrame({"item_id": [1, 2, 3], "title": ["a", "b", "c"]}),
        users=pl.DataFrame({"user_id": [1, 2]}),
        impressions=None,
        settings={"repeats": True, "interactions": {"positive_actions": ["buy"]}},
    )
    monkeypatch.setitem(sys.modules, "nextitem.data.shop.shop", SimpleNamespace(generate_shop=lambda: shop))
    dataset = load_dataset("shop")
    assert (dataset.name, dataset.source, dataset.catalog.num_items) == ("shop", "shop", 3)
    folder = load(tmp_path, interactions=log, toml='[interactions]\npositive_actions = ["buy"]')
    assert folder.source == str(tmp_path)
    assert rows(dataset) == rows(folder)


def test_frames_may_be_lazy_and_their_mistakes_name_table_and_row() -> None:
    frame = pl.LazyFrame({"user_id": [1, None], "item_id": [1, 2], "timestamp": [1, 2]})
    with pytest.raises(UserError, match=r"toys/interactions: column 'user_id', row 2: the id is missing"):
        dataset_from_frames({"interactions": frame}, name="toys")


REAL = {  # name -> numbers of users or sessions, items, events, impressions in their READMEs
    "online-retail": (4_363, 3_676, 404_909, 0),
    "amazon14-beauty": (22_363, 12_101, 198_502, 0),
    "amazon14-sports": (35_598, 18_357, 296_337, 0),
    "amazon14-tools": (16_638, 10_217, 134_476, 0),
    "amazon18-office": (3_231, 3_459, 22_447, 0),
    "tmall-sessions": (66_313, 40_727, 443_479, 0),
    "obd-men": (0, 34, 0, 20_000),
}


def real(name: str) -> Path:
    """Return the folder of a real data set; skip the test without NEXTITEM_DATA."""
    root = os.environ.get("NEXTITEM_DATA")
    if not root or not (Path(root) / name).is_dir():
        pytest.skip(f"set NEXTITEM_DATA to a folder with {name}")
    return Path(root) / name


@pytest.mark.parametrize("name", REAL)
def test_real_data_has_the_counts_of_its_readme(name: str) -> None:
    start_time = time.process_time()
    dataset = load_dataset(real(name))
    num_impressions = 0 if dataset.impressions is None else len(dataset.impressions.item_ids)
    counts = (len(dataset.users.ids), dataset.catalog.num_items, len(dataset.interactions), num_impressions)
    assert counts == REAL[name]
    assert dataset.name == name
    assert time.process_time() - start_time < 20


def test_online_retail_keeps_the_order_within_an_invoice() -> None:
    log = load_dataset(real("online-retail")).interactions
    frame = pl.read_parquet(real("online-retail") / "interactions.parquet").sort(
        "user_id", "timestamp", maintain_order=True
    )
    assert log.columns["quantity"].to_list() == frame["quantity"].to_list()
    assert log.columns["action"].value_counts().sort("count")["count"].to_list() == [8_539, 396_370]


def test_request_columns_are_encoded_by_declaration_with_a_code_for_missing_values() -> None:
    users = pl.DataFrame(
        {
            "user_id": [1, 2, 3],
            "country": ["NL", None, "FR"],
            "age": [30.5, None, 20.0],
            "hobbies": [["chess"], None, ["golf", "chess"]],
        }
    )
    features = {"country": "categorical", "age": "numeric", "hobbies": "categorical-list"}
    log = pl.DataFrame({"user_id": [1, 2, 3] * 2, "item_id": [1, 2, 3, 2, 3, 1], "timestamp": range(6)})
    dataset = dataset_from_frames({"interactions": log, "users": users}, {"users": {"features": features}})
    columns = dataset.catalog.requests
    assert {name: column.kind for name, column in columns.items()} == {
        "user.country": "categorical",
        "user.age": "numeric",
        "user.hobbies": "categorical-list",
    }
    context = context_of(user_context(dataset), torch.tensor([3, 0, 2, 1]))
    assert context["user.country"].tolist() == [1, 0, 0, 2]
    assert context["user.age"].nan_to_num(-1).tolist() == [20.0, -1, -1, 30.5]
    assert context["user.hobbies"].to_lists() == [[2, 1], [], [], [1]]
    assert columns["user.country"].encode(pl.Series(["FR", "unheard of"])).to_list() == [1, 0]


def test_an_open_vocabulary_is_hashed_the_same_way_everywhere() -> None:
    column = ColumnEncoding("categorical", None, 1000)
    assert column.encode(pl.Series(["a", None, "b", "a"])).to_list() == [908, 0, 682, 908]
    assert column.num_codes == 1001


def test_a_data_frame_in_place_of_a_data_set_says_how_to_make_one() -> None:
    with pytest.raises(UserError, match=r"got a DataFrame; make a data set of a data frame with: Dataset.from_frames"):
        load_dataset(pl.DataFrame({"user_id": [1], "item_id": [2]}))  # type: ignore[arg-type]
