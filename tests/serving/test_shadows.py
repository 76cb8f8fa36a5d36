"""Shadow models get copies of requests that change no answer, are logged apart, and are dropped if they are slow."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from support.trained_models import rich_run

from nextitem.core.errors import UserError
from nextitem.serving.app import make_app
from nextitem.serving.config import ServiceConfig
from nextitem.serving.impressions import ImpressionLog
from nextitem.serving.requests import HistoryEvent, ServedRequest
from nextitem.serving.service import Answer, Service
from nextitem.serving.stores import open_store
from nextitem.serving.tenants import Tenant

ADA = ServedRequest("ada", history=(HistoryEvent("i03"), HistoryEvent("i04")), k=4)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    tenant = Tenant(
        "default",
        open_store("sqlite:///:memory:"),
        impressions=ImpressionLog(tmp_path / "log"),
        shadow_impressions=ImpressionLog(tmp_path / "log" / "shadow"),
    )
    shadows = {"popularity": rich_run("popularity")}
    config = ServiceConfig(deadline_seconds=20, shadow_queue=2)
    new_service = Service({"item-cf": rich_run("item-cf")}, [tenant], config, shadows=shadows)
    yield new_service
    new_service.close()


async def answers(service: Service, *requests: ServedRequest) -> list[Answer]:
    """Return the answers to requests that come one after another, when the shadows are done, too."""
    result = [await service.recommend(service.models["item-cf"], request) for request in requests]
    await service.shadows.finished()
    return result


def test_a_shadow_is_logged_apart_and_compared(service: Service) -> None:
    visitor = ServedRequest(history=(HistoryEvent("i03"),), candidates=("i01", "i02"))
    answer, _ = asyncio.run(answers(service, ADA, visitor))
    assert answer.result.item_ids == rich_run("item-cf").recommend(history=["i03", "i04"], k=4).item_ids
    tenant = service.default_tenant
    assert tenant.recorder is not None
    assert tenant.shadow_recorder is not None
    asyncio.run(tenant.recorder.delete_user("nobody"))  # waits for the lists before it
    asyncio.run(tenant.shadow_recorder.delete_user("nobody"))
    table, shadow = tenant.recorder.impressions.table(), tenant.shadow_recorder.impressions.table()
    expected = rich_run("popularity").recommend(history=["i03", "i04"], k=4).item_ids
    assert shadow["item_id"].to_list() == expected
    assert shadow["impression_id"].to_list() == [answer.request_id] * 4
    fingerprint = rich_run("popularity").model.weights_fingerprint()
    assert set(shadow["policy"]) == {f"shadow popularity {fingerprint}"}
    assert set(table["policy"]) == {answer.policy}  # what was not seen is no training data
    overlap = len(set(expected) & set(answer.result.item_ids)) / 4
    text = service.metrics.text().decode()
    assert f'nextitem_shadow_overlap_sum{{model="item-cf",shadow="popularity"}} {overlap}' in text
    assert 'nextitem_shadow_seconds_count{shadow="popularity"} 1.0' in text


def test_shadows_are_listed_apart_and_answer_nobody(service: Service) -> None:
    client = TestClient(make_app(service))
    assert [model["name"] for model in client.get("/v1/models").json()] == ["item-cf"]
    models = client.get("/v1/models?shadows=true").json()
    assert [(model["name"], model["is_shadow"]) for model in models] == [("item-cf", False), ("popularity", True)]
    answer = client.post("/v1/recommend", json={"history": ["i03"], "model": "popularity"})
    assert (answer.status_code, "no model is called 'popularity'" in answer.text) == (400, True)


def test_a_slow_shadow_delays_nothing_and_is_dropped(service: Service) -> None:
    (shadow,) = service.shadows.models
    recommend, may_answer = shadow.engine.recommend, threading.Event()

    def slow(*arguments: Any) -> Any:
        assert may_answer.wait(20)
        return recommend(*arguments)

    shadow.engine.recommend = slow  # type: ignore[method-assign, assignment]

    async def play() -> list[Answer]:
        model = service.models["item-cf"]
        result = []
        for _ in range(6):
            result.append(await service.recommend(model, ADA))
            await asyncio.sleep(0.01)  # the copy is made when the loop is free
        may_answer.set()
        await service.shadows.finished()
        return result

    assert [answer.fallback_reason for answer in asyncio.run(play())] == [None] * 6
    text = service.metrics.text().decode()
    assert 'nextitem_shadow_seconds_count{shadow="popularity"} 3.0' in text  # one is answered, two wait
    assert 'nextitem_shadow_dropped_total{shadow="popularity"} 3.0' in text


def test_a_failing_shadow_changes_no_answer(service: Service) -> None:
    (shadow,) = service.shadows.models

    def failing(*_: object) -> list[Exception]:
        return [RuntimeError("ada bought i03")]

    shadow.engine.recommend = failing  # type: ignore[method-assign, assignment]
    (answer,) = asyncio.run(answers(service, ADA))
    assert answer.fallback_reason is None
    assert 'nextitem_shadow_dropped_total{shadow="popularity"} 1.0' in service.metrics.text().decode()


def test_a_deletion_waits_for_lists_that_are_being_made_and_written(service: Service, tmp_path: Path) -> None:
    """Requests and shadow copies of a user that are in progress leave nothing behind in files and memory."""
    (shadow,) = service.shadows.models
    model, gates = service.models["item-cf"], [threading.Event(), threading.Event()]
    tenant = service.default_tenant
    assert tenant.recorder is not None
    append, slow_disk = tenant.recorder.impressions.append, threading.Event()

    def slowly(function: Any, gate: threading.Event) -> Any:
        def slow(*arguments: Any) -> Any:
            assert gate.wait(20)
            return function(*arguments)

        return slow

    model.engine.recommend = slowly(model.engine.recommend, gates[0])  # type: ignore[method-assign]
    shadow.engine.recommend = slowly(shadow.engine.recommend, gates[1])  # type: ignore[method-assign]
    tenant.recorder.impressions.append = slowly(append, slow_disk)  # type: ignore[method-assign]

    async def play() -> int:
        answers_to_come = [asyncio.create_task(service.recommend(model, ADA)) for _ in range(3)]
        await asyncio.sleep(0.05)
        deletion = asyncio.create_task(service.delete_user("ada"))
        for gate in (*gates, slow_disk):
            await asyncio.sleep(0.05)
            assert not deletion.done()
            gate.set()
        await asyncio.gather(*answers_to_come)
        return await deletion

    assert asyncio.run(play()) == 0
    service.close()  # everything that waits is written now
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not any(b"ada" in file.read_bytes() for file in files)
    assert not model.version.last_lists


def test_a_run_is_either_a_model_or_a_shadow() -> None:
    run = rich_run("item-cf")
    with pytest.raises(UserError, match="a run and a shadow are called item-cf"):
        Service({"item-cf": run}, open_store("sqlite:///:memory:"), shadows={"item-cf": run})
