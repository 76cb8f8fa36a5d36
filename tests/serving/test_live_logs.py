"""Reading the logs of a server from outside: impressions while they are written, and the events of all users."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nextitem.core.errors import UserError
from nextitem.evaluation.attribution import EVENT_SCHEMA
from nextitem.serving import impressions, stored_events
from nextitem.serving.impressions import ImpressionLog, ShownList, read_impressions
from nextitem.serving.stored_events import read_events
from nextitem.serving.stores import StoredEvent, open_store


def shown_list(number: int) -> ShownList:
    return ShownList(f"r{number}", "ada", ["x", "y"], 1_700_000_000_000 + number, [0.5, 1.0], "m aaaaaaaa")


def test_a_log_is_read_while_it_is_written(tmp_path: Path) -> None:
    log = ImpressionLog(tmp_path, lists_per_file=3)
    for number in range(5):
        log.append([shown_list(number)])
        files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert read_impressions(tmp_path).equals(log.table())
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert {Path(name).suffix for name in files} == {".parquet", ".jsonl"}


def test_a_file_that_is_rotated_meanwhile_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = ImpressionLog(tmp_path)
    log.append([shown_list(1)])
    read, calls = impressions._read, []

    def rotating(file: Path) -> pl.DataFrame:
        calls.append(file.suffix)
        if len(calls) == 1:
            log.close()
        return read(file)

    monkeypatch.setattr(impressions, "_read", rotating)
    assert read_impressions(tmp_path)["impression_id"].to_list() == ["r1", "r1"]
    assert calls == [".jsonl", ".parquet"]


def test_missing_and_damaged_logs_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_impressions(tmp_path / "nowhere")
    with pytest.raises(UserError, match="contains no log of impressions"):
        read_impressions(tmp_path)
    (tmp_path / "impressions-000001.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="is damaged"):
        read_impressions(tmp_path)


def test_events_of_a_store_are_read_page_by_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'events.db'}"
    events = [StoredEvent(f"e{number}", f"u{number % 3}", "x", None, number, f"r{number}") for number in range(7)]
    with open_store(url) as store:
        store.append(events)
    with open_store(url, namespace="other") as store:
        store.append(events[:2])
    monkeypatch.setattr(stored_events, "PAGE", 3)
    table = read_events(url)
    assert dict(table.schema) == EVENT_SCHEMA
    assert table.rows() == [("u" + str(number % 3), "x", None, number, f"r{number}") for number in range(7)]
    assert read_events(url, namespace="other").height == 2
    with pytest.raises(UserError, match="no such file"):
        read_events(f"sqlite:///{tmp_path / 'nowhere.db'}")
    assert not (tmp_path / "nowhere.db").exists()


def test_events_of_a_folder_count_once_and_have_milliseconds(tmp_path: Path) -> None:
    rows: dict[str, list[Any]] = {
        "UserNumber": [1, 1, 2],
        "item_id": ["x", "x", "y"],
        "timestamp": [1_700_000_000, 1_700_000_000, 1_700_000_001],
        "event_id": ["e1", "e1", None],
    }
    pl.DataFrame(rows).write_csv(tmp_path / "interactions.csv")
    (tmp_path / "dataset.toml").write_text('[interactions]\nrename = { user_id = "UserNumber" }\n')
    expected = [("1", "x", None, 1_700_000_000_000, None), ("2", "y", None, 1_700_000_001_000, None)]
    assert read_events(str(tmp_path)).rows() == expected
    (tmp_path / "interactions.csv").unlink()
    with pytest.raises(UserError, match="has no interactions"):
        read_events(str(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        read_events(str(tmp_path / "nowhere"))
