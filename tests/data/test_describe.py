"""Summary of data sets: numbers computed by hand, and facts of the READMEs of real data sets."""

from __future__ import annotations

import json
import os
from pathlib import Path

import polars as pl
import pytest

from nextitem.data.describe import describe
from nextitem.data.readers import dataset_from_frames, load_dataset


def test_a_summary_equals_numbers_computed_by_hand() -> None:
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
    summary = describe(dataset_from_frames({"interactions": log, "items": items}, settings, name="tiny"))
    assert summary["name"] == "tiny"
    assert (summary["users"], summary["items"], summary["items_with_events"]) == (2, 4, 2)
    assert (summary["events"], summary["searches"], summary["target_events"]) == (4, 1, 3)
    assert summary["period"] == ["1970-01-01T00:00:00+00:00", "1970-01-02T00:00:00+00:00"]
    assert summary["actions"] == {"buy": 3, "view": 1, "search": 1}
    assert summary["density"] == 3 / 8
    assert summary["repeat_share"] == 1 / 4
    assert summary["events_per_user"] == {
        "min": 2.0,
        "25%": 2.25,
        "median": 2.5,
        "75%": 2.75,
        "90%": 2.9,
        "max": 3.0,
        "mean": 2.5,
    }
    assert (summary["default_protocol"], summary["default_protocol_reason"]) == ("time", "every event is dated")
    assert summary["columns"]["items"] == ["item_id", "title"]
    assert "text of 1 of 4 items" in summary["missing"]
    assert any(words.startswith("impressions") for words in summary["missing"])
    assert json.loads(json.dumps(summary)) == summary


def test_a_summary_of_impressions_only() -> None:
    impressions = pl.DataFrame({"impression_id": [1, 1, 2], "item_id": [1, 2, 1], "timestamp": [10, 10, 20]})
    summary = describe(dataset_from_frames({"impressions": impressions}))
    assert (summary["users"], summary["events"], summary["impressions"], summary["impression_requests"]) == (0, 0, 3, 2)
    assert summary["period"] == ["1970-01-01T00:00:10+00:00", "1970-01-01T00:00:20+00:00"]
    assert summary["default_protocol"] == "impressions"
    assert summary["missing"][0].startswith("interactions")
    assert json.loads(json.dumps(summary)) == summary


def test_anonymous_sessions_are_called_sessions() -> None:
    log = pl.DataFrame({"session_id": [1, 1, 2], "item_id": [1, 2, 1], "position": [0, 1, 0]})
    summary = describe(dataset_from_frames({"interactions": log}))
    assert (summary["users"], summary["users_are"], summary["period"]) == (2, "sessions", None)
    assert any(words.startswith("times") for words in summary["missing"])


def test_the_summary_of_online_retail_agrees_with_its_readme() -> None:
    root = os.environ.get("NEXTITEM_DATA")
    if not root or not (Path(root) / "online-retail").is_dir():
        pytest.skip("set NEXTITEM_DATA to a folder with online-retail")
    summary = describe(load_dataset(Path(root) / "online-retail"))
    assert summary["actions"] == {"purchase": 396_370, "cancel": 8_539}
    assert 0.3 < summary["repeat_share"] < 0.37
    assert summary["period"][0].startswith("2010-12-01T08:26")
    assert summary["missing"] == ["impressions: ranking models and policy evaluation learn from them"]
