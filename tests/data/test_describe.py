"""describe: numbers worked out by hand, and the facts of the real sets' READMEs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import polars as pl
import pytest

from nextitem.data.describe import describe
from nextitem.data.readers import dataset_from_frames, load_dataset


def test_numbers_by_hand() -> None:
    log = pl.DataFrame(
        {
            "user_id": ["a", "a", "a", "b", "b"],
            "item_id": [1, 2, 1, 2, None],
            "timestamp": [0, 60, 120, 180, 86_400],
            "action": ["buy", "view", "buy", "buy", "search"],
            "query": ["", "", "", "", "lamp"],
        }
    )
    items = pl.DataFrame({"item_id": [1, 2, 3, 4], "title": ["x", None, "y", "z"]})
    settings = {"interactions": {"positive_actions": ["buy"]}}
    found = describe(dataset_from_frames({"interactions": log, "items": items}, settings, name="tiny"))
    assert found["name"] == "tiny"
    assert (found["users"], found["items"], found["items_with_events"]) == (2, 4, 2)
    assert (found["events"], found["searches"], found["target_events"]) == (4, 1, 3)
    assert found["period"] == ["1970-01-01T00:00:00+00:00", "1970-01-02T00:00:00+00:00"]
    assert found["actions"] == {"buy": 3, "view": 1, "search": 1}
    assert found["density"] == 3 / 8
    assert found["repeat_share"] == 1 / 4
    assert found["events_per_user"] == {
        "min": 2.0,
        "25%": 2.25,
        "median": 2.5,
        "75%": 2.75,
        "90%": 2.9,
        "max": 3.0,
        "mean": 2.5,
    }
    assert (found["default_protocol"], found["default_protocol_reason"]) == ("time", "every event is dated")
    assert found["columns"]["items"] == ["item_id", "title"]
    assert "text of 1 of 4 items" in found["missing"]
    assert any(words.startswith("impressions") for words in found["missing"])
    assert json.loads(json.dumps(found)) == found


def test_impressions_only() -> None:
    shown = pl.DataFrame({"impression_id": [1, 1, 2], "item_id": [1, 2, 1], "timestamp": [10, 10, 20]})
    found = describe(dataset_from_frames({"impressions": shown}))
    assert (found["users"], found["events"], found["impressions"], found["impression_requests"]) == (0, 0, 3, 2)
    assert found["period"] == ["1970-01-01T00:00:10+00:00", "1970-01-01T00:00:20+00:00"]
    assert found["default_protocol"] == "impressions"
    assert found["missing"][0].startswith("interactions")
    assert json.loads(json.dumps(found)) == found


def test_anonymous_sessions_are_called_sessions() -> None:
    log = pl.DataFrame({"session_id": [1, 1, 2], "item_id": [1, 2, 1], "position": [0, 1, 0]})
    found = describe(dataset_from_frames({"interactions": log}))
    assert (found["users"], found["users_are"], found["period"]) == (2, "sessions", None)
    assert any(words.startswith("times") for words in found["missing"])


def test_online_retail() -> None:
    root = os.environ.get("NEXTITEM_DATA")
    if not root or not (Path(root) / "online-retail").is_dir():
        pytest.skip("set NEXTITEM_DATA to a folder with online-retail")
    found = describe(load_dataset(Path(root) / "online-retail"))
    assert found["actions"] == {"purchase": 396_370, "cancel": 8_539}
    assert 0.3 < found["repeat_share"] < 0.37
    assert found["period"][0].startswith("2010-12-01T08:26")
    assert found["missing"] == ["impressions: ranking models and policy evaluation learn from them"]
