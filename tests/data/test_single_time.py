"""One time of a request is read as a column of a data set, by the server and by Python alike."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
import torch

from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.data.readers import dataset_from_frames
from nextitem.data.requests import RequestBuilder
from nextitem.data.single_time import milliseconds_of
from nextitem.pipeline.recommend import history_requests
from nextitem.serving.histories import HistoryReader
from nextitem.serving.requests import HistoryEvent, ServedRequest

VALUES: list[Any] = [
    1_700_000_000, 1_700_000_000_123, 1_700_000_000.123, 1_700_000_000_123.75, -5, -200_000_000_000, 0,
    "1700000000", "1700000000.5", " 2024-05-31 18:30:00 ", "2024-05-31", "2024/5/1 7:05", "2024-05-31T18:30:00.250Z",
    "2024-05-31T18:30:00,5+02:00",
]  # fmt: skip


def dataset_of(value: Any) -> Dataset:
    """Return a data set in which the value is a column of events and a feature of the user."""
    log = {"user_id": list("uuuv"), "item_id": list("abca"), "timestamp": [1, 2, 3, 4], "opened": [value] * 4}
    settings = {
        "interactions": {"context": {"opened": "timestamp"}},
        "users": {"features": {"joined": "timestamp"}},
    }
    users = {"user_id": ["u", "v"], "joined": [value] * 2}
    return dataset_from_frames({"interactions": pl.DataFrame(log), "users": pl.DataFrame(users)}, settings, name="t")


@pytest.mark.parametrize("value", VALUES)
def test_a_time_of_a_request_equals_that_of_the_data_set(value: Any) -> None:
    dataset = dataset_of(value)
    log = dataset.interactions
    stored = RequestBuilder(dataset).build(log.offsets[:1], log.offsets[1:2])
    expected = stored.features["opened"].values
    events = tuple(HistoryEvent(item, None, None, {"opened": value}) for item in "abc")
    request = ServedRequest(history=events, context={"user.joined": value})
    ((_, served),) = HistoryReader(dataset).read([request]).batches
    frame = pl.DataFrame({"item_id": ["a", "b", "c"], "opened": [value] * 3})
    python, _ = history_requests(frame, dataset.catalog, context={"user.joined": value})
    for batch in (served, python):
        assert torch.equal(batch.features["opened"].values, expected)
        assert torch.equal(batch.context["user.joined"], expected[:1])


@pytest.mark.parametrize("value", ["soon", "31.05.2024", "", True, float("nan"), [1], None])
def test_what_is_no_time_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="is no time"):
        milliseconds_of(value)


def test_python_names_the_column_of_a_wrong_time() -> None:
    catalog = dataset_of(5).catalog
    with pytest.raises(UserError, match=r"context 'user.joined': 'soon' is no time"):
        history_requests(["a"], catalog, context={"user.joined": "soon"})
    frame = pl.DataFrame({"item_id": ["a"], "opened": ["soon"]})
    with pytest.raises(UserError, match=r"history: column 'opened': 'soon' is no time"):
        history_requests(frame, catalog)
