"""Data sets from frames in memory: frames of other libraries, column names, and one line for each mistake."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError

LOG: dict[str, list[Any]] = {
    "user_id": ["u1", "u1", "u2", "u2"],
    "item_id": [5, 6, 5, 7],
    "timestamp": [1_700_000_000, 1_700_000_060, 1_700_000_120, 1_700_000_180],
}
ITEMS: dict[str, list[Any]] = {"item_id": [5, 6, 7], "title": ["a", None, "c"], "price": [1.5, None, 2.0]}


class Missing:
    """Replacement for pandas.NA, since pandas is not installed for tests."""


Missing.__name__ = "NAType"
NA = Missing()


class Index:
    """Row labels of a pandas frame."""

    def __init__(self, *names: str | None) -> None:
        self.names = names


class PandasLike:
    """Frame with the interface of pandas that is used if it cannot export Arrow: columns, [name], to_numpy."""

    def __init__(self, columns: dict[Any, Any], *, index: str | None = None, exports: bool = False) -> None:
        self.data = columns
        self.label = index
        self.exports = exports

    @property
    def columns(self) -> list[Any]:
        return [name for name in self.data if name != self.label]

    @property
    def index(self) -> Index:
        return Index(self.label)

    def reset_index(self) -> PandasLike:
        return PandasLike(self.data)

    def __getitem__(self, name: str) -> SeriesLike:
        return SeriesLike(self.data[name])

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        if not self.exports:
            raise ImportError("pyarrow is needed")
        return pa.table({name: pa.array(values) for name, values in self.data.items()}).__arrow_c_stream__()


class SeriesLike:
    def __init__(self, values: Any) -> None:
        self.values = values

    def to_numpy(self) -> np.ndarray[Any, Any]:
        if isinstance(self.values, np.ndarray):
            return self.values
        array = np.empty(len(self.values), dtype=object)
        array[:] = self.values
        return array


def frames(log: dict[str, Any]) -> list[object]:
    """Return the same table in every accepted form."""
    return [
        pl.DataFrame(log),
        pl.LazyFrame(log),
        log,
        pa.table(log),
        pa.table(log).to_batches()[0],
        {name: np.array(values) for name, values in log.items()},
        {name: tuple(values) for name, values in log.items()},
        {name: pl.Series(values) for name, values in log.items()},
        PandasLike(log),
        PandasLike(log, exports=True),
        PandasLike(log, index="user_id"),
    ]


def refusal(log: object, **others: Any) -> str:
    with pytest.raises(UserError) as caught:
        Dataset.from_frames(interactions=log, name="toys", **others)
    assert "\n" not in str(caught.value)
    assert "toys" in str(caught.value)
    return str(caught.value)


def test_frames_of_every_library_are_the_same_data() -> None:
    fingerprints = {Dataset.from_frames(interactions=log).fingerprint for log in frames(LOG)}
    assert len(fingerprints) == 1
    items = [ITEMS, pl.DataFrame(ITEMS), pa.table(ITEMS), PandasLike(ITEMS)]
    tables = [Dataset.from_frames(interactions=LOG, items=table).catalog.table for table in items]
    assert all(table.equals(tables[0]) for table in tables)
    assert tables[0]["price"].to_list() == [1.5, None, 2.0]


def test_a_data_set_of_all_tables_with_settings_and_a_name() -> None:
    dataset = Dataset.from_frames(
        interactions=LOG,
        items=ITEMS,
        users={"user_id": ["u1", "u2"], "country": ["FR", "NL"]},
        impressions={
            "impression_id": [1, 1, 2],
            "item_id": [5, 6, 7],
            "timestamp": [1_700_000_000] * 3,
            "click": [0, 1, 0],
        },
        settings={
            "repeats": False,
            "users": {"features": {"country": "categorical"}},
            "impressions": {"labels": ["click"]},
        },
        name="toys",
    )
    assert (dataset.name, dataset.repeats, dataset.source) == ("toys", False, "")
    assert dataset.users.table["country"].to_list() == ["FR", "NL"]
    assert dataset.impressions is not None
    assert dataset.impressions.labels == ("click",)


def test_missing_values_of_pandas_are_missing() -> None:
    items = PandasLike(
        {
            "item_id": np.array([5, 6, 7]),
            "title": ["a", float("nan"), NA],
            "size": np.array([1.0, np.nan, 2.0]),
            "count": [1, NA, 3],
        }
    )
    settings = {"items": {"features": {"size": "numeric", "count": "numeric"}}}
    table = Dataset.from_frames(interactions=LOG, items=items, settings=settings).catalog.table
    assert table.select("title", "size", "count").rows() == [("a", 1.0, 1), (None, None, None), (None, 2.0, 3)]


def test_row_labels_of_pandas_without_a_name_are_not_a_column() -> None:
    items = pa.table(ITEMS | {"__index_level_0__": [3, 4, 5]})
    assert Dataset.from_frames(LOG, items=items).catalog.table.columns == list(ITEMS)


def test_columns_with_other_names_can_be_mapped() -> None:
    expected = Dataset.from_frames(interactions=LOG, items=ITEMS)
    log = pl.DataFrame(LOG).rename({"user_id": "CustomerID", "item_id": "sku", "timestamp": "at"})
    items = pl.DataFrame(ITEMS).rename({"item_id": "sku"})
    shared = {"user_id": "CustomerID", "item_id": "sku", "timestamp": "at"}
    assert Dataset.from_frames(interactions=log, items=items, columns=shared).fingerprint == expected.fingerprint
    mixed: dict[str, str | dict[str, str]] = {
        "interactions": {"user_id": "CustomerID", "item_id": "sku"},
        "timestamp": "at",
        "items": {"item_id": "sku"},
    }
    assert Dataset.from_frames(interactions=log, items=items, columns=mixed).fingerprint == expected.fingerprint
    renamed = Dataset.from_frames(
        interactions=log,
        items=ITEMS,
        columns={"timestamp": "at"},
        settings={"interactions": {"rename": {"user_id": "CustomerID", "item_id": "sku"}}},
    )
    assert renamed.fingerprint == expected.fingerprint


def test_names_of_rectools_and_recbole_need_no_mapping() -> None:
    rectools = pl.DataFrame(LOG).rename({"timestamp": "datetime"}).with_columns(weight=pl.Series([1, 5, 3, 2]))
    dataset = Dataset.from_frames(rectools)
    assert dataset.fingerprint == Dataset.from_frames(LOG).fingerprint
    assert any("whatever its value (1 to 5)" in note for note in dataset.notes)
    recbole = pl.DataFrame(LOG).rename(
        {"user_id": "user_id:token", "item_id": "item_id:token", "timestamp": "timestamp:float"}
    )
    recbole = recbole.with_columns(
        pl.col("timestamp:float").cast(pl.Float64), pl.Series("rating:float", [1.0, 5, 3, 2])
    )
    items = {"item_id:token": [5, 6, 7], "title:token_seq": ["a", "b", "c"], "weight": [1, 2, 3]}
    dataset = Dataset.from_frames(recbole, items=items)
    assert dataset.interactions.timestamps is not None
    assert dataset.catalog.table.columns == ["item_id", "title", "weight"]
    assert any("whatever its rating (1 to 5)" in note for note in dataset.notes)


def test_a_name_of_rectools_is_ignored_if_the_standard_name_exists() -> None:
    both = LOG | {"datetime": ["x"] * 4}
    assert Dataset.from_frames(both).fingerprint == Dataset.from_frames(LOG).fingerprint
    mapped = {"datetime" if name == "timestamp" else name: values for name, values in LOG.items()} | {
        "at": LOG["timestamp"]
    }
    mapped["datetime"] = ["x"] * 4
    with pytest.raises(UserError, match="'datetime'"):
        Dataset.from_frames(mapped)
    assert Dataset.from_frames(mapped, columns={"timestamp": "at"}).fingerprint == Dataset.from_frames(LOG).fingerprint


@pytest.mark.parametrize(
    ("log", "options", "parts"),
    [
        (LOG | {"item_id": [5, "6", 5, 7]}, {}, ("toys/interactions", "'item_id'", "several types (int, str)", "text")),
        (PandasLike(LOG | {"item_id": [5, "6", 5, 7]}), {}, ("'item_id'", "several types (int, str)")),
        (LOG | {"user_id": ["a", b"b", "c", "d"]}, {}, ("'user_id'", "several types (bytes, str)")),
        (LOG | {"item_id": [True, 2, 3, 4]}, {}, ("'item_id'", "several types (bool, int)")),
        (LOG | {"item_id": [[1], [2], [3], [4]]}, {}, ("'item_id'", "List(Int64)")),
        (pl.DataFrame(LOG | {"user_id": [object()] * 4}), {}, ("'user_id'", "several types")),
        (LOG | {"item_id": [2**130, 2, 3, 4]}, {}, ("'item_id'", "beyond 128 bits as text")),
        (LOG | {"user_id": ["a", None, "b", "c"]}, {}, ("'user_id', row 2", "missing")),
        (LOG | {"user_id": ["a", float("nan"), "b", "c"]}, {}, ("'user_id', row 2", "missing")),
        (LOG | {"item_id": np.array([1.0, 2.0, np.nan, 3.0])}, {}, ("'item_id', row 3", "missing")),
        (LOG | {"item_id": [1.0, 2.0, 2.5, 3.0]}, {}, ("'item_id', row 3", "2.5 is no exact whole number")),
        (LOG | {"user_id": ["a", "b"]}, {}, ("different lengths", "user_id 2", "item_id 4")),
        (pl.DataFrame(LOG).drop("item_id"), {}, ("'item_id' is missing", 'columns={"item_id": "<its name here>"}')),
        (pl.DataFrame(LOG).clear(), {}, ("contains no events",)),
        ({name: [] for name in LOG}, {}, ("contains no events",)),
        ({}, {}, ("'item_id' is missing",)),
        (pa.table([[1], [2]], names=["a", "a"]), {}, ("'a' occurs 2 times",)),
        ([1, 2, 3], {}, ("is a list", "data frame")),
        ("interactions.csv", {}, ("is a str", "data frame")),
        (None, {}, ("neither interactions nor impressions",)),
        (LOG, {"columns": {"user_id": "Customer"}}, ("'user_id' is column 'Customer'", "there are user_id")),
        (
            {"CustomerID" if name == "user_id" else name: values for name, values in LOG.items()},
            {"columns": {"CustomerID": "user_id"}},
            ("it maps our name to yours",),
        ),
        (LOG, {"columns": {"items": {"item_id": "sku"}}}, ("'items'", "there are interactions")),
        (LOG, {"columns": {"interactions": {"item_id": "sku"}}}, ("'item_id' is column 'sku'", "correct it")),
        (LOG | {"sku": [1] * 4}, {"columns": {"item_id": "sku"}}, ("'item_id' too", "drop one")),
        (LOG, {"settings": {"items": {"features": {"price": "numeric"}}}}, ("[items]", "no file items")),
        (LOG, {"settings": {"item": {}}}, ("'item'",)),
        (LOG, {"items": {"item_id": [5, 6], "title": ["a", "b"]}}, ("row 4", "7", "drop_unknown_items=True")),
        (
            LOG | {"timestamp": [datetime(2020, 1, 1), datetime(2020, 1, 1, tzinfo=UTC)] * 2},
            {},
            ("'timestamp'", "time zone", "all of them one, or none"),
        ),
    ],
)
def test_every_mistake_raises_an_error_of_one_line(
    log: object, options: dict[str, Any], parts: tuple[str, ...]
) -> None:
    message = refusal(log, **options)
    assert not [part for part in parts if part not in message], message


def test_a_column_that_occurs_twice_is_refused() -> None:
    class Doubled(PandasLike):
        @property
        def columns(self) -> list[Any]:
            return ["user_id", "item_id", "item_id", "timestamp"]

    assert "'item_id' occurs 2 times" in refusal(Doubled(LOG))


def test_whole_floats_are_ids_and_huge_integers_are_text() -> None:
    floats = Dataset.from_frames(LOG | {"item_id": [5.0, 6.0, 5.0, 7.0]})
    assert floats.fingerprint == Dataset.from_frames(LOG).fingerprint
    huge = Dataset.from_frames(LOG | {"item_id": [1, 2**70, 1, 2]})
    assert huge.catalog.ids.external.to_list() == ["1", "1180591620717411303424", "2"]


def test_times_of_python_and_numpy_are_read() -> None:
    expected = Dataset.from_frames(LOG).fingerprint
    naive = [datetime.fromtimestamp(second, UTC).replace(tzinfo=None) for second in LOG["timestamp"]]
    aware = [datetime.fromtimestamp(second, UTC) for second in LOG["timestamp"]]
    for times in (
        naive,
        aware,
        np.array(naive, dtype="datetime64[ns]"),
        [float(second) for second in LOG["timestamp"]],
    ):
        assert Dataset.from_frames(LOG | {"timestamp": times}).fingerprint == expected


def test_ids_in_arrow_dictionaries_and_categories_are_read() -> None:
    expected = Dataset.from_frames(LOG).fingerprint
    table = pa.table(LOG)
    encoded = table.set_column(0, "user_id", table["user_id"].dictionary_encode())
    assert Dataset.from_frames(encoded).fingerprint == expected
    categories = pl.DataFrame(LOG).with_columns(pl.col("user_id").cast(pl.Categorical))
    assert Dataset.from_frames(categories).fingerprint == expected


def test_a_lazy_frame_that_fails_raises_an_error_of_one_line() -> None:
    broken = pl.LazyFrame(LOG).with_columns(pl.col("user_id").str.to_integer())
    assert "toys/interactions: the frame cannot be computed" in refusal(broken)
    assert "toys" in refusal(pl.LazyFrame(LOG).select("nothing"))
    assert "toys" in refusal(pl.scan_parquet("/nowhere/log.parquet"))
