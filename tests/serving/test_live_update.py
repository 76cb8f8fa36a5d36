"""A server updates its run from the events that it received, and takes the new version into use."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from support.drifting_log import drifting_log

import nextitem as ni
from nextitem.pipeline.runs import Run, load_run
from nextitem.serving.app import make_app
from nextitem.serving.service import Service
from nextitem.serving.stores import open_store
from nextitem.serving.updater import Updater


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path, str]:
    log = drifting_log(1, num_users=60, num_items=24, num_new=6)
    data, later = log.write(tmp_path)
    run = tmp_path / "run"
    ni.train("item-graph", data, out=run, recipe="debug/item-graph", progress=False)
    return run, later, f"sqlite:///{tmp_path / 'events.db'}"


@pytest.mark.slow  # a process of its own
def test_a_server_learns_from_its_events(places: tuple[Path, Path, str]) -> None:
    run, later, url = places
    service = Service({"run": load_run(run)}, open_store(url))

    def open_run(folder: Path) -> Run:
        return load_run(folder)

    service.watch({"run": run}, open_run, seconds=0.1)
    with TestClient(make_app(service)) as client:
        rows = drifting_log(1, num_users=60, num_items=24, num_new=6).later.rows()
        events = [
            {"event_id": f"e{n}", "user_id": user, "item_id": item, "action": "click", "timestamp": second}
            for n, (user, item, second) in enumerate(rows)
        ]
        for start in range(0, len(events), 200):
            answer = client.post("/v1/events", json={"events": events[start : start + 200]})
            assert answer.status_code == 200
        body = {"user_id": rows[-1][0], "k": 5}
        before = client.post("/v1/recommend", json=body).json()
        options = ["--items", str(later), "--device", "cpu"]
        command = (sys.executable, "-m", "nextitem")
        service.update_with(Updater({"run": run}, url, every_seconds=0.5, options=options, command=command))
        end = time.monotonic() + 120
        while (version := client.get("/v1/models").json()[0]["version"]) == before["version"]:
            assert time.monotonic() < end, service.updater.figures() if service.updater else ""
            time.sleep(0.2)
        after = client.post("/v1/recommend", json=body).json()
        assert after["version"] == version == load_run(run).model.weights_fingerprint()
        assert client.get("/v1/models").json()[0]["num_items"] == 30
        # The events are in the data of the version and in the store, and count once.
        expected = load_run(run).recommend(user=rows[-1][0], k=5).item_ids
        assert [item["item_id"] for item in after["items"]] == expected
        for _ in range(200):
            client.post("/v1/recommend", json=body)
        while 'nextitem_update_promoted{model="run"} 1.0' not in (text := client.get("/metrics").text):
            assert time.monotonic() < end, text  # the process ends a moment after its version is used
            time.sleep(0.2)
        assert 'nextitem_fallback_share{model="run"} 0.0' in text
        assert 'nextitem_coverage{model="run"}' in text
