"""Explanations and knobs over HTTP: the fields of the answer, absent unless a request wants them, and errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from support.trained_models import rich_run

from nextitem.serving.app import make_app
from nextitem.serving.config import ServiceConfig
from nextitem.serving.service import Service
from nextitem.serving.stores import open_store


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    runs = {name: rich_run(name) for name in ("depth-decoder", "lr")}
    service = Service(runs, open_store(f"sqlite:///{tmp_path / 'events.db'}"), ServiceConfig(deadline_seconds=20))
    yield TestClient(make_app(service))
    service.close()


def test_an_explanation_is_in_the_answer_if_a_request_wants_it(client: TestClient) -> None:
    body = {"history": ["i03", "i04"], "k": 3, "model": "depth-decoder"}
    plain = client.post("/v1/recommend", json=body).json()
    assert "explanation" not in plain
    answer = client.post("/v1/recommend", json={**body, "explain": True}).json()
    assert answer["items"] == plain["items"]
    items, levels = answer["explanation"]["items"], answer["explanation"]["levels"]
    assert [item["item_id"] for item in items] == [item["item_id"] for item in answer["items"]]
    assert {name for item in items for name in item} == {"item_id", "neighbours"}
    assert all(set(one) == {"item_id", "title", "share"} for item in items for one in item["neighbours"])
    assert [level["level"] for level in levels] == list(range(1, len(levels) + 1))
    for prefix in (prefix for level in levels for prefix in level["prefixes"]):
        assert {"codes", "score", "state", "titles"} <= set(prefix) <= {
            "codes", "score", "state", "titles", "model", "guide",
        }  # fmt: skip
    assert levels[-1]["cut_by_constraint"] > 0  # the items of the history


def test_candidates_are_explained_too(client: TestClient) -> None:
    body = {"history": ["i03", "i04"], "candidates": ["i05", "i09"], "model": "lr", "explain": True}
    explanation = client.post("/v1/rank", json=body).json()["explanation"]
    assert {item["item_id"] for item in explanation["items"]} == {"i05", "i09"}
    assert explanation["levels"] == []


def test_a_request_can_name_the_objective(client: TestClient) -> None:
    body = {"history": ["i03", "i04"], "k": 3, "model": "lr"}
    target = rich_run("lr").model.config.task_names[0]  # type: ignore[attr-defined]
    first, second = (client.post("/v1/recommend", json={**body, **more}) for more in ({}, {"objective": target}))
    assert [item["item_id"] for item in second.json()["items"]] == [item["item_id"] for item in first.json()["items"]]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"guide_weight": 0.5, "model": "depth-decoder"}, 400, "DepthDecoder has no guide"),
        ({"guide_weight": 1.5}, 422, "guide_weight"),
        ({"objective": "love", "model": "lr"}, 400, "no objective is called 'love'; there are "),
        ({"objective": "love", "model": "depth-decoder"}, 400, "DepthDecoder has none"),
        ({"explain": "perhaps"}, 422, "explain"),
    ],
)
def test_knobs_that_do_not_fit_are_refused(
    client: TestClient, body: dict[str, object], status: int, message: str
) -> None:
    answer = client.post("/v1/recommend", json={"history": ["i03"], **body})
    assert answer.status_code == status
    assert message in answer.json()["error"]
