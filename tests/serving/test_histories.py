"""Histories of requests: the reader's batches equal those that RequestBuilder builds from frames, bit by bit."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.plain_histories import PlainHistoryReader

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import ColumnEncoding
from nextitem.core.dataset import Dataset
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.data.readers import dataset_from_frames
from nextitem.serving.histories import HistoryReader
from nextitem.serving.requests import HistoryEvent, ServedRequest
from nextitem.testing.rich_log import SETTINGS, rich_frames

NEWEST = 1_800_000_000_000


@cache
def dataset(kind: str) -> Dataset:
    frames, times = rich_frames(), [1_700_000_000 + 3600 * n for n in range(0, 400, 10)]
    frames["impressions"] = pl.DataFrame(
        {
            "impression_id": range(len(times)),
            "user_id": [f"u{n % 3:02d}" for n in range(len(times))],
            "item_id": [f"i{n % 7:02d}" for n in range(len(times))],
            "timestamp": times,
        }
    )
    rich = dataset_from_frames(frames, SETTINGS, name="rich")
    if kind == "dated":
        return rich
    if kind == "undated":
        return replace(rich, interactions=replace(rich.interactions, timestamps=None))
    log = rich.interactions  # searches: events without an item
    items = np.where(np.arange(len(log)) % 3 == 0, 0, log.item_ids).astype(np.int32)
    searches = Interactions(
        log.user_ids, items, log.num_users, log.num_items, timestamps=log.timestamps, columns=log.columns
    )
    return replace(rich, interactions=searches, anonymous=True)


@cache
def readers(kind: str) -> tuple[HistoryReader, PlainHistoryReader]:
    return HistoryReader(dataset(kind)), PlainHistoryReader(dataset(kind))


def log_times() -> list[int]:
    times = dataset("dated").interactions.timestamps
    assert times is not None
    return [int(time) for time in times]


OF_THE_LOG = st.builds(lambda place: log_times()[place], st.integers(0, 20))
TIMES = st.none() | st.sampled_from([0, -5, NEWEST, NEWEST + 1]) | OF_THE_LOG
DEVICES, PRICES = st.sampled_from(["phone", "web", "new", None, True]), st.sampled_from([3, 0.1, None])
ITEMS = st.sampled_from(["i00", "i01", "i02", " i03", "unknown", "another"])
COLUMNS = st.fixed_dictionaries({}, optional={"device": DEVICES, "price": PRICES})
EVENTS = st.lists(
    st.builds(HistoryEvent, ITEMS, st.sampled_from([None, "view", "buy", "new"]), TIMES, COLUMNS), max_size=4
)
CONTEXT = st.fixed_dictionaries({}, optional={"user.country": st.sampled_from(["FR", "nowhere", 7, None])})
REQUESTS = st.lists(
    st.builds(
        ServedRequest,
        user_id=st.sampled_from([None, "u00", "u01", "u02", "stranger", ""]),
        history=st.none() | EVENTS.map(tuple),
        context=CONTEXT,
    ),
    min_size=1,
    max_size=5,
)
NEW_EVENTS = st.dictionaries(st.sampled_from(["u00", "u01", "stranger"]), EVENTS, max_size=3)


def parts_of(batch: SequenceBatch) -> dict[str, Any]:
    """Return all tensors of a batch by name; rows that are no tensors by what they are."""
    parts: dict[str, Any] = {}
    for entry in fields(batch):
        value = getattr(batch, entry.name)
        for name, part in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(part, Jagged):
                parts[f"{entry.name}.{name} offsets"], part = part.offsets, part.values
            parts[f"{entry.name}.{name}"] = part
    return parts


@pytest.mark.parametrize("kind", ["dated", "undated", "anonymous with searches"])
@settings(max_examples=60, deadline=None)
@given(requests=REQUESTS, new_events=NEW_EVENTS)
def test_batches_equal_those_built_from_frames(
    kind: str, requests: list[ServedRequest], new_events: dict[str, list[HistoryEvent]]
) -> None:
    reader, plain = readers(kind)
    actual, expected = reader.read(requests, new_events), plain.read(requests, new_events)
    assert actual.skipped == expected.skipped
    assert {row: str(error) for row, error in actual.errors.items()} == {
        row: str(error) for row, error in expected.errors.items()
    }
    assert [rows for rows, _ in actual.batches] == [rows for rows, _ in expected.batches]
    for (_, batch), (_, expected_batch) in zip(actual.batches, expected.batches, strict=True):
        parts, expected_parts = parts_of(batch), parts_of(expected_batch)
        assert parts.keys() == expected_parts.keys()
        for name, part in expected_parts.items():
            if isinstance(part, torch.Tensor):
                torch.testing.assert_close(parts[name], part, rtol=0, atol=0, equal_nan=True, msg=name)
            else:
                assert parts[name] is part is None, name


@pytest.mark.parametrize(
    ("encoding", "values"),
    [
        (ColumnEncoding("categorical", pl.Series(["a", "b"])), ["b", None, "c", "a"]),
        (ColumnEncoding("categorical", None, 7), ["b", None, "日本", ""]),
        (ColumnEncoding("numeric"), [1.5, None, 1e300, 0.1]),
        (ColumnEncoding("timestamp"), [1_700_000_000_123, None, -1]),
    ],
)
def test_few_values_are_encoded_as_a_column_is(encoding: ColumnEncoding, values: list[Any]) -> None:
    dtype = {"categorical": pl.String, "numeric": pl.Float64, "timestamp": pl.Int64}[encoding.kind]
    column = encoding.encode(pl.Series("x", values, dtype=dtype))
    expected = (column.fill_null(float("nan")) if column.dtype.is_float() else column).to_numpy()
    actual = encoding.encode_few(values)
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)
    assert len(encoding.encode_few([])) == 0
