"""Requests that the server has begun to read count before those in the queues, so that none piles up in between."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from support.trained_models import rich_run

from nextitem.serving.config import ServiceConfig
from nextitem.serving.gate import Gate, LoopLag
from nextitem.serving.service import Service
from nextitem.serving.stores import open_store
from nextitem.serving.tenants import Tokens


def test_requests_inside_count_before_they_reach_a_queue() -> None:
    service = Service({"item-cf": rich_run("item-cf")}, open_store("sqlite:///:memory:"), ServiceConfig(max_wait=0.5))
    service.models["item-cf"].batcher._time.observe(10, 1.0)  # at most 0.1 seconds a request
    release, statuses = asyncio.Event(), []

    async def application(_: Any, __: Any, send: Any) -> None:
        await release.wait()  # such as a body that comes slowly
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def play() -> None:
        gate = Gate(application, service, Tokens("", default="default"))

        async def ask(path: str) -> None:
            async def send(message: dict[str, Any]) -> None:
                if message["type"] == "http.response.start":
                    statuses.append((path, message["status"]))

            headers = [(b"content-length", b"2")]
            await gate({"type": "http", "method": "POST", "path": path, "headers": headers}, None, send)  # type: ignore[arg-type]

        first = [asyncio.create_task(ask("/v1/recommend")) for _ in range(80)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        refused = len(statuses)
        await ask_events(ask)
        release.set()
        await asyncio.gather(*first)
        assert statuses[:refused] == [("/v1/recommend", 429)] * refused
        assert 70 <= refused < 80
        statuses.clear()
        await ask("/v1/recommend")
        assert statuses == [("/v1/recommend", 200)]  # those that are answered count no more

    async def ask_events(ask: Any) -> None:
        task = asyncio.create_task(ask("/v1/events"))
        await asyncio.sleep(0)
        assert not task.done()

    try:
        asyncio.run(play())
    finally:
        service.close()


def test_models_share_the_requests_inside() -> None:
    runs = {name: rich_run(name) for name in ("item-cf", "popularity")}
    service = Service(runs, open_store("sqlite:///:memory:"), ServiceConfig(max_queue=10))
    try:
        assert service.refusal(19) is None
        refusal = service.refusal(20)
        assert refusal is not None
        assert str(refusal).startswith("10 requests wait")
        assert refusal.retry_after == pytest.approx(0.0)  # nothing was measured yet
    finally:
        service.close()


def test_the_delay_of_the_loop_is_seen_while_it_lasts() -> None:
    lag = LoopLag()

    async def play() -> list[float]:
        first = lag.seconds()
        await asyncio.sleep(0.1)
        calm = lag.seconds()
        time.sleep(0.4)  # a callback that keeps the loop busy
        busy = lag.seconds()
        await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        return [first, calm, busy, lag.seconds()]

    first, calm, busy, after = asyncio.run(play())
    assert first == 0.0
    assert busy > 0.35
    assert calm < busy / 2
    assert after < busy / 2
    assert asyncio.run(play())[0] == 0.0  # another loop


def test_a_request_that_has_waited_too_long_is_refused() -> None:
    config = ServiceConfig(max_wait=0.2)
    service = Service({"item-cf": rich_run("item-cf")}, open_store("sqlite:///:memory:"), config)
    try:
        assert service.refusal(waited=0.3) is None  # nothing else is there to be answered
        assert service.refusal(1, waited=0.19) is None
        refusal = service.refusal(1, waited=0.3)
        assert refusal is not None
        assert refusal.retry_after == pytest.approx(0.3)
    finally:
        service.close()
