"""Gate: what happens to every HTTP request before and after its route: limits, tokens, counting, timing, logging.

It is plain ASGI, as it costs each request 20 microseconds instead of the 500 of a middleware class of the framework.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nextitem.serving.batching import QueueFullError
from nextitem.serving.service import Service
from nextitem.serving.tenants import Tenant, Tokens

MAX_BODY = 2 * 2**20  # bytes
PRIVATE = "/v1/"  # paths below it need a token, if there are tokens
MODEL_PATHS = ("/v1/recommend", "/v1/rank")  # refused before their body is read, if no model accepts any
request_log = logging.getLogger("nextitem.requests")


@dataclass
class Call:
    """What is noted of a request while it is answered.

    Attributes:
        tenant: whose request it is.
        model: name of the model that answered, or None.

    """

    tenant: Tenant
    model: str | None = None


def call_of(request: Request) -> Call:
    """Return what is noted of a request: whose it is."""
    call: Call = request.scope["nextitem"]
    return call


class LoopLag:
    """Delay of the event loop: how late it turns to what has come, such as a request that waits in a socket.

    A heartbeat measures how late it comes itself.
    """

    PERIOD = 0.02  # seconds between two beats

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due = self._late = 0.0

    def seconds(self) -> float:
        """Return the delay of the running loop; 0 when it is asked for the first time."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._late = loop, 0.0
            self._schedule(loop)
        return max(self._late, time.perf_counter() - self._due, 0.0)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = time.perf_counter() + self.PERIOD
        loop.call_later(self.PERIOD, self._beat, loop)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is self._loop:
            self._late = time.perf_counter() - self._due
            self._schedule(loop)


class Gate:
    """The first part of the application that sees a request, and the last that sees its answer."""

    def __init__(self, app: ASGIApp, service: Service, tokens: Tokens) -> None:
        self.app, self.service, self.tokens = app, service, tokens
        self._lag = LoopLag()
        self._num_inside = 0  # requests for lists that have come and are not answered yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and count, time and log it by its route; ids of users and items are in no line."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, problem = time.perf_counter(), 500, None
        call = scope["nextitem"] = Call(self.service.default_tenant)

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            problem = self._problem(scope, call)
            if problem is None:
                is_list = scope["path"] in MODEL_PATHS
                self._num_inside += is_list
                try:
                    await self.app(scope, receive, watched)
                finally:
                    self._num_inside -= is_list
            else:
                await refuse(watched, *problem)
        finally:
            seconds = time.perf_counter() - started
            path = getattr(scope.get("route"), "path", None) or known_path(scope, problem is not None)
            self.service.metrics.observe_request(path, status, seconds)
            if request_log.isEnabledFor(logging.INFO):
                fields = {"method": scope["method"], "route": path, "status": status, "ms": round(seconds * 1000, 2)}
                request_log.info("request", extra={"fields": {**fields, "model": call.model}})

    def _problem(self, scope: Scope, call: Call) -> tuple[int, str, Mapping[str, str]] | None:
        """Return status, message and headers with which a request is refused, or None if it goes on."""
        headers = {name: value for name, value in scope["headers"] if name in (b"content-length", b"authorization")}
        length = headers.get(b"content-length")
        if scope["method"] in ("POST", "PUT") and (length is None or not length.isdigit()):
            return 411, "the header Content-Length is needed", {}
        if length is not None and (len(length) > 18 or int(length) > MAX_BODY):
            return 413, f"the body is too large; at most {MAX_BODY} bytes are read", {}
        path = scope["path"]
        if path.startswith(PRIVATE):
            namespace = self.tokens.namespace_of(headers.get(b"authorization", b"").decode("latin-1"))
            if namespace is None:
                return 401, "the header Authorization: Bearer TOKEN is missing or wrong", {"WWW-Authenticate": "Bearer"}
            call.tenant = self.service.tenants[namespace]
            if path in MODEL_PATHS:
                refusal = self.service.refusal(self._num_inside, waited=self._lag.seconds())
                if refusal is not None:
                    return 429, str(refusal), retry_after(refusal)
        return None


def known_path(scope: Scope, is_refused: bool) -> str:
    """Return the path of a request that reached no route, if it is one that only lists of items have."""
    return scope["path"] if is_refused and scope["path"] in MODEL_PATHS else "other"


def retry_after(refusal: QueueFullError) -> dict[str, str]:
    """Return the header that says when a refused request may be accepted, in whole seconds."""
    return {"Retry-After": str(max(1, math.ceil(refusal.retry_after)))}


async def refuse(send: Send, status: int, message: str, headers: Mapping[str, str]) -> None:
    """Send one line that says what is wrong."""
    body = json.dumps({"error": message}).encode()
    lines = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    encoded = [(name.lower().encode(), value.encode()) for name, value in lines.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
