"""A server that is a function, for tests of simulated customers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx2

from nextitem.simulation.play import Playthrough, play
from nextitem.simulation.world import World, WorldConfig
from support.simulated_shop import small_shop

ITEMS = [str(item) for item in small_shop().items["item_id"]]
Handler = Callable[[httpx2.Request], httpx2.Response]


class FakeServer:
    """Recommends the first items to even users and the last to odd ones, and remembers the calls."""

    def __init__(self, *, busy_calls: int = 0) -> None:
        self.requests: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.busy_calls = busy_calls
        self.at_once, self.most_at_once = 0, 0

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if self.busy_calls:
            self.busy_calls -= 1
            return httpx2.Response(429, headers={"Retry-After": "0"}, json={"error": "too many requests wait"})
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if request.url.path == "/v1/models":
            return httpx2.Response(200, json=[{"name": "first"}, {"name": "last"}])
        if request.url.path.startswith("/v1/items/"):
            return httpx2.Response(200, json=small_shop().items.row(0, named=True))
        body = json.loads(request.content)
        if request.url.path == "/v1/events":
            self.events += body["events"]
            return httpx2.Response(200, json={"accepted": len(body["events"])})
        self.requests.append(body["user_id"])
        model = "first" if sum(map(ord, body["user_id"])) % 2 else "last"
        items = ITEMS[: body["k"]] if model == "first" else ITEMS[-body["k"] :]
        return httpx2.Response(
            200,
            json={
                "request_id": f"r{len(self.requests)}",
                "model": model,
                "version": "abc",
                "fallback": False,
                "items": [{"item_id": int(item), "score": 1.0, "title": item} for item in items],
            },
        )


def client(handler: Any) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url="http://fake", transport=httpx2.MockTransport(handler))


def played(server: Any, *, connections: int = 8, **settings: Any) -> Playthrough:
    world = World(small_shop(), WorldConfig(**{"customers": 50, "days": 10, **settings}))

    async def run() -> Playthrough:
        async with client(server) as session:
            return await play(world, session, connections=connections)

    return asyncio.run(run())
