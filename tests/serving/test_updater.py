"""Updates from the events of a store, and beside a server in a process of their own."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import polars as pl
import pytest
from support.drifting_log import PERIOD, START, drifting_log

import nextitem as ni
from nextitem.core.errors import UserError
from nextitem.serving.histories import HistoryReader
from nextitem.serving.requests import HistoryEvent, ServedRequest
from nextitem.serving.stores import StoredEvent, open_store
from nextitem.serving.updater import Updater, stored_events, update_from_store


def test_all_events_of_a_store_are_read_page_by_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextitem.serving.updater.PAGE", 3)
    events = [StoredEvent(f"e{n}", f"u{n % 2}", f"i{n}", None, n, None) for n in range(8)]
    with open_store(f"sqlite:///{tmp_path / 'events.db'}") as store:
        store.append(events[:7])
        frame, cursor = stored_events(store)
        assert frame["event_id"].to_list() == [f"e{n}" for n in range(7)]
        assert frame["timestamp"].dt.epoch("ms").to_list() == list(range(7))
        store.append(events)
        later, end = stored_events(store, cursor)
        assert later["item_id"].to_list() == ["i7"]
        assert stored_events(store, end)[0].height == 0


def test_a_run_is_updated_from_a_store_which_is_read_on_from_where_the_version_ends(tmp_path: Path) -> None:
    log = drifting_log(1, num_users=60, num_items=24, num_new=6)
    data, later = log.write(tmp_path)
    run, url = tmp_path / "run", f"sqlite:///{tmp_path / 'events.db'}"
    ni.train("item-graph", data, out=run, recipe="debug/item-graph", progress=False)
    assert update_from_store(run, url).card["decision"] == "waiting"
    rows = log.later.rows()
    events = [
        StoredEvent(f"e{n}", user, item, "click", second * 1000, None) for n, (user, item, second) in enumerate(rows)
    ]
    seen = [StoredEvent(f"s{n}", user, "i000", "seen", second * 1000, None) for n, (user, _, second) in enumerate(rows)]
    with open_store(url) as store:
        store.append(events + seen)
    outcome = update_from_store(run, url, items=later, progress=False)
    assert outcome.is_promoted
    assert outcome.card["events"] == {"new": len(events), "known": 0, "unknown_items": 0}
    assert outcome.card["source"] == {"store": url, "namespace": "default", "cursor": 2 * len(events)}
    assert ni.load_run(run).model.num_items == 30
    assert update_from_store(run, url, progress=False).card["reason"].endswith("has no new events")
    with open_store(url) as store:
        store.append([StoredEvent("last", "u0001", "i001", "click", (START + 3 * PERIOD) * 1000, None)])
    with_last = update_from_store(run, url, dry_run=True, progress=False).card
    assert with_last["events"]["new"] == 1
    kinds = pl.read_parquet(run / "versions" / "2" / "data" / "interactions.parquet")
    assert "action" not in kinds.columns  # the data of the run have no actions


def test_events_that_data_and_store_have_count_once_in_histories() -> None:
    dataset = ni.Dataset.from_frames(
        interactions={"user_id": ["a", "a", "b"], "item_id": ["x", "y", "y"], "timestamp": [1000, 1100, 1200]}
    )
    reader = HistoryReader(dataset)

    def items(user: str, *events: tuple[str, int]) -> list[int]:
        new = {user: [HistoryEvent(item, None, 1000 * second) for item, second in events]}
        [(_, batch)] = reader.read([ServedRequest(user)], new).batches
        assert batch.timestamps is not None
        assert len(batch.timestamps.values) == len(batch.items.values)
        return [int(item) for item in batch.items.values]

    assert items("a", ("y", 1100), ("x", 1300)) == [1, 2, 1]  # the first is in the data
    assert items("a", ("x", 1100)) == [1, 2, 1]  # another item at that time
    assert items("a", ("y", 1050)) == [1, 2, 2]  # a late event
    assert items("b", ("y", 1100), ("y", 1200)) == [2, 2]  # of another user
    assert items("a", ("x", 1000), ("y", 1100)) == [1, 2]


def test_a_store_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    ni.train("popularity", drifting_log(1, num_users=20).write(tmp_path)[0], out=tmp_path / "run", progress=False)
    with pytest.raises(UserError, match="the store cannot be read: redis:"):
        update_from_store(tmp_path / "run", "redis://127.0.0.1:1/0")


SCRIPT = """
import sys, time
from pathlib import Path
from nextitem.pipeline.updating.version_store import remember
run, option = Path(sys.argv[2]), sys.argv[1:]
assert option[0] == "update" and option[2:4] == ["--store", "sqlite:///x.db"] and option[-1] == "--refit", option
(run / "calls").open("a").write(f"{time.time()}\\n")
mode = (run / "mode").read_text()
if mode == "fail":
    sys.exit("error: no luck")
if mode == "hang":
    time.sleep(60)
remember(run, {"version": "2", "decision": "promoted", "reason": "it is better", "difference": 0.25})
"""


def test_an_updater_runs_one_update_after_the_other_and_keeps_the_outcomes(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    runs = {"good": tmp_path / "good", "bad": tmp_path / "bad"}
    for run, mode in zip(runs.values(), ("promote", "fail"), strict=True):
        run.mkdir()
        (run / "mode").write_text(mode)
    updater = Updater(
        runs,
        "sqlite:///x.db",
        every_seconds=0.05,
        options=["--refit"],
        command=(sys.executable, str(tmp_path / "script.py")),
    )
    assert updater.figures() == {name: {"update_failures": 0.0} for name in runs}
    updater.start()
    wait_for(lambda: updater.figures()["bad"]["update_failures"] >= 2)
    good, bad = updater.figures()["good"], updater.figures()["bad"]
    assert (good["update_promoted"], good["update_gain"], good["update_failures"]) == (1.0, 0.25, 0.0)
    assert "update_promoted" not in bad
    assert abs(good["update_time_seconds"] - time.time()) < 60
    (runs["good"] / "mode").write_text("hang")
    num_calls = len((runs["good"] / "calls").read_text().splitlines())
    wait_for(lambda: len((runs["good"] / "calls").read_text().splitlines()) > num_calls)
    started = time.monotonic()
    updater.stop()
    assert time.monotonic() - started < 8  # the update that hangs is ended
    num_calls = len((runs["good"] / "calls").read_text().splitlines())
    time.sleep(0.3)
    assert len((runs["good"] / "calls").read_text().splitlines()) == num_calls


def wait_for(condition: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)
