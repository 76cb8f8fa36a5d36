"""Logs as JSON lines: one line a request with method, route, status, time and model, and no id of a user or item."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from support.trained_models import rich_run

from nextitem.serving.app import make_app
from nextitem.serving.logs import start_logging
from nextitem.serving.service import Service
from nextitem.serving.stores import open_store


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("nextitem.requests", "nextitem.serving")}
    stream = io.StringIO()
    start_logging("json", stream)
    yield stream
    root.handlers, root.level = handlers, level
    for name, former in levels.items():
        logging.getLogger(name).setLevel(former)


@pytest.fixture
def service() -> Iterator[Service]:
    new_service = Service({"item-cf": rich_run("item-cf")}, open_store("sqlite:///:memory:"))
    yield new_service
    new_service.close()


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_each_request_is_one_line(service: Service, stream: io.StringIO) -> None:
    client = TestClient(make_app(service))
    client.post("/v1/recommend", json={"user_id": "ada", "history": ["i03"]})
    client.get("/v1/items/i03")
    client.delete("/v1/users/ada")
    client.post("/v1/recommend", json={"user_id": "ada", "k": 0})
    client.get("/nowhere/ada")
    client.post("/v1/rank", content=b"x" * (2 * 2**20 + 1))
    lines = [line for line in lines_of(stream) if line["logger"] == "nextitem.requests"]
    assert [(line["method"], line["route"], line["status"], line["model"]) for line in lines] == [
        ("POST", "/v1/recommend", 200, "item-cf"),
        ("GET", "/v1/items/{item_id}", 200, None),
        ("DELETE", "/v1/users/{user_id}", 200, None),
        ("POST", "/v1/recommend", 422, None),
        ("GET", "other", 404, None),
        ("POST", "/v1/rank", 413, None),
    ]
    assert all(isinstance(line["ms"], float) and line["ms"] > 0 for line in lines)
    assert all({"time", "level", "message"} <= set(line) for line in lines)


def test_no_line_contains_an_id(service: Service, stream: io.StringIO) -> None:
    """Whatever goes wrong: the text of an exception of a model may quote the request."""
    client = TestClient(make_app(service), raise_server_exceptions=False)

    def failing(*_: object) -> list[Exception]:
        return [KeyError("ada bought i03")]

    service.models["item-cf"].engine.recommend = failing  # type: ignore[method-assign, assignment]
    assert client.post("/v1/recommend", json={"user_id": "ada"}).json()["fallback_reason"] == "error"
    event = {"event_id": "e-ada", "user_id": "ada", "item_id": "i03", "timestamp": 4_000_000_000}
    client.post("/v1/events", json={"events": [event]})
    client.get("/v1/items/i03?model=ada")
    service.unknown_items = failing  # type: ignore[method-assign, assignment]
    client.post("/v1/events", json={"events": [{**event, "timestamp": 1}]})  # fails with 500
    lines = lines_of(stream)
    assert [line["status"] for line in lines if "status" in line] == [200, 400, 400, 500]
    failed = next(line for line in lines if line.get("exception") == "KeyError")
    assert failed["message"].endswith("the model item-cf failed")
    assert not any(text in stream.getvalue() for text in ("ada", "i03"))
