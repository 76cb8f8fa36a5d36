"""MTGR in use: calibrated, by `nextitem rank`, over HTTP with a cache that new events continue, and in a cascade."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from nextitem.cascade.cascade import Cascade
from nextitem.cli.main import main
from nextitem.data.shop.shop import generate_shop
from nextitem.models.rankers.mtgr import MTGR
from nextitem.pipeline.runs import Run, load_run
from nextitem.pipeline.train import train
from nextitem.serving.app import make_app
from nextitem.serving.config import ServiceConfig
from nextitem.serving.service import Service
from nextitem.serving.stores import open_store
from nextitem.testing.known_answers import planted_clusters

SMALL = ["width=4", "token_width=8", "head_width=4", "hidden=[8]", "max_recent_tokens=8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run of MTGR on the impressions of a shop with 150 items and 200 customers."""
    folder = tmp_path_factory.mktemp("mtgr")
    generate_shop(3, num_items=150, num_users=200).write(folder / "data")
    overrides = [
        "training.max_epochs=1",
        "training.batch_size=64",
        "model.calibration=platt",
        *(f"model.{setting}" for setting in SMALL),
    ]
    return train(
        "mtgr", folder / "data", out=folder / "run", protocol="impressions", overrides=overrides, progress=False
    )


@pytest.mark.slow
def test_a_calibrated_run_ranks_by_the_command_as_in_python(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(run.model, MTGR)
    assert len(run.model.curves) == 2
    assert run.evaluation is not None
    assert {"auc", "gauc", "log_loss", "auc_purchase"} <= run.evaluation.metrics.keys()
    user = run.dataset.users.ids.external[0]
    candidates = [str(item) for item in run.dataset.catalog.ids.external[:6]]
    line = ["nextitem", "rank", str(run.folder), "--user", str(user), "--candidates", ",".join(candidates), "--json"]
    monkeypatch.setattr(sys, "argv", line)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    rows = json.loads(capsys.readouterr().out)
    expected = run.rank(user=user, candidates=run.dataset.catalog.ids.external[:6].to_list())
    assert [row["item_id"] for row in rows] == expected["item_id"].to_list()
    assert [row["score"] for row in rows] == pytest.approx(expected["score"].to_list(), rel=1e-5)


@pytest.mark.slow
def test_the_server_ranks_with_a_cache_as_without_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, and after a new event: the second answers come from cached tokens."""
    monkeypatch.setattr("nextitem.serving.states.MIN_EVENTS", 1)
    user = str(run.dataset.users.ids.external[0])
    candidates = [str(item) for item in run.dataset.catalog.ids.external[:6]]
    body = {"user_id": user, "candidates": candidates}
    answers = []
    for state_bytes in (0, 2**24):
        store = open_store(f"sqlite:///{tmp_path / f'{state_bytes}.db'}")
        service = Service({"mtgr": run}, store, ServiceConfig(deadline_seconds=60, state_bytes=state_bytes))
        client = TestClient(make_app(service))
        rows = [client.post("/v1/rank", json=body).json()["items"] for _ in range(2)]
        event = {"event_id": "e1", "user_id": user, "item_id": candidates[2], "action": "view"}
        assert client.post("/v1/events", json={"events": [event]}).status_code < 300
        rows.append(client.post("/v1/rank", json=body).json()["items"])
        answers.append(rows)
        service.close()
    for without, with_cache in zip(*answers, strict=True):
        assert [item["item_id"] for item in with_cache] == [item["item_id"] for item in without]
        assert [item["score"] for item in with_cache] == pytest.approx([item["score"] for item in without], rel=1e-4)


@pytest.mark.slow
def test_mtgr_ranks_within_a_cascade(tmp_path: Path) -> None:
    settings = ", ".join(SMALL)
    cascade = train(
        "cascade",
        planted_clusters(),
        out=tmp_path / "run",
        recipe="debug/cascade",
        protocol="leave-one-out",
        overrides=[
            f"model.ranking.model={{name='mtgr', objective='listwise', {settings}}}",
            "stages.ranking.max_epochs=1",
        ],
        progress=False,
    )
    model = load_run(cascade.folder).model
    assert isinstance(model, Cascade)
    assert isinstance(model.ranker, MTGR)
    answer = cascade.recommend(history=[str(item) for item in planted_clusters().catalog.ids.external[:2]], k=5)
    assert len(set(answer.item_ids)) == 5
