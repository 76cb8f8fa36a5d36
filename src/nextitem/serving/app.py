"""The HTTP API: routes and errors around a Service. Its OpenAPI document is at /openapi.json."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException as AnyHTTPException

from nextitem.core.errors import UserError
from nextitem.pipeline.recommend import similar_items
from nextitem.serving.answers import list_answer, model_answer
from nextitem.serving.batching import ClosedError, QueueFullError
from nextitem.serving.gate import Call, Gate, call_of, retry_after
from nextitem.serving.pages import page_token, shown_items
from nextitem.serving.playground.routes import add_playground
from nextitem.serving.playground.traffic import Traffic
from nextitem.serving.requests import ServedRequest
from nextitem.serving.schemas import (
    EventsAnswer,
    EventsBody,
    ListAnswer,
    ModelAnswer,
    Problem,
    RankBody,
    RecommendBody,
    SimilarAnswer,
    SimilarBody,
)
from nextitem.serving.served_model import ServedModel
from nextitem.serving.service import Answer, Service, stored_event
from nextitem.serving.stores.store import StoreUnavailable
from nextitem.serving.tenants import Tokens
from nextitem.serving.values import milliseconds

MAX_MESSAGE = 1_000  # characters of an error, which may quote what was sent
FUTURE_MS = 5 * 60_000  # by which the clock of a client may be ahead
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The request is invalid."},
    401: {"model": Problem, "description": "The token is missing or wrong."},
    411: {"model": Problem, "description": "The length of the body is missing."},
    413: {"model": Problem, "description": "The body is too large."},
    422: {"model": Problem, "description": "A field is unknown, missing, or out of its limits."},
    429: {"model": Problem, "description": "Too many requests wait; Retry-After says when to come again."},
    503: {"model": Problem, "description": "The store or the server cannot answer now."},
}


def make_app(service: Service, *, tokens: Tokens | Sequence[str] = (), shows_users: bool = True) -> FastAPI:
    """Return the application.

    Args:
        service: the models and the tenants; it is closed when the application ends.
        tokens: bearer tokens that are accepted; none: everybody may ask.
        shows_users: whether the playground may read ids of users and their histories.

    """
    traffic = {namespace: Traffic() for namespace in service.tenants}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    if not isinstance(tokens, Tokens):
        tokens = Tokens(",".join(tokens), default=service.default_tenant.namespace)
    unknown = set(tokens.tenants()) - set(service.tenants)
    if unknown:
        raise UserError(f"tokens: {', '.join(sorted(unknown))} is no tenant of this server")
    app = FastAPI(
        title="nextitem",
        description="Recommendations, ranking, similar items and events.",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat the header Host
    )
    _add_errors(app)
    _add_lists(app, service, traffic)
    _add_data(app, service)
    add_playground(app, service, traffic, shows_users=shows_users)
    _add_health(app, service)
    app.add_middleware(Gate, service=service, tokens=tokens)
    return app


def _add_errors(app: FastAPI) -> None:
    """Let every error have a status and one line that says what is wrong."""

    def problem(status: int, message: str, **headers: str) -> JSONResponse:
        line = "".join(character if character.isprintable() else " " for character in message)
        if len(line) > MAX_MESSAGE:
            line = line[: MAX_MESSAGE - 1] + "…"
        return JSONResponse({"error": line}, status, headers)

    def handler(status: int, **headers: str) -> Callable[[Request, Exception], JSONResponse]:
        return lambda _, error: problem(status, str(error).replace("--only", "only"), **headers)

    def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return problem(422, f"{place}: {first['msg']}" if place else str(first["msg"]))

    def refused(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, AnyHTTPException)
        return problem(error.status_code, str(error.detail), **(error.headers or {}))

    def full(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, QueueFullError)
        return problem(429, str(error), **retry_after(error))

    app.add_exception_handler(UserError, handler(400))
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(AnyHTTPException, refused)
    app.add_exception_handler(QueueFullError, full)
    app.add_exception_handler(ClosedError, handler(503, **{"Retry-After": "5"}))
    app.add_exception_handler(StoreUnavailable, handler(503, **{"Retry-After": "5"}))


def _json(content: object) -> Response:
    """Return JSON as it is; the routes declare its schema, and a test compares them, so that no request pays for it."""
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def _add_lists(app: FastAPI, service: Service, traffic: Mapping[str, Traffic]) -> None:
    """Add the routes that return lists of items."""

    async def answered(
        route: str, call: Call, model: ServedModel, request: ServedRequest, *, explore: float | None = None
    ) -> Answer:
        started, call.model = time.perf_counter(), model.name
        answer = await service.recommend(model, request, tenant=call.tenant, explore=explore)
        seconds, reason = time.perf_counter() - started, answer.fallback_reason
        latest = traffic[call.tenant.namespace]
        latest.record(route, model.name, answer.result, fallback_reason=reason, seconds=seconds)
        return answer

    @app.post("/v1/recommend", responses=PROBLEMS, response_model=ListAnswer)
    async def recommend(body: RecommendBody, http: Request) -> Response:
        """Recommend items to a user, or for a history."""
        request, shown_ids = body.to_request(), shown_items(body.page)
        model = service.model_for(body.model, request.user_id)
        request = request.without(shown_ids)
        answer = await answered("recommend", call_of(http), model, request, explore=body.explore)
        is_last = len(answer.result.item_ids) < request.k
        token = None if is_last else page_token([*shown_ids, *map(str, answer.result.item_ids)])
        return _json(list_answer(answer, token))

    @app.post("/v1/rank", responses=PROBLEMS, response_model=ListAnswer)
    async def rank(body: RankBody, http: Request) -> Response:
        """Order given items for a user, or for a history."""
        request = body.to_request()
        model = service.model_for(body.model, request.user_id)
        return _json(list_answer(await answered("rank", call_of(http), model, request)))

    @app.post("/v1/similar", responses=PROBLEMS, response_model=SimilarAnswer)
    async def similar(body: SimilarBody, http: Request) -> Response:
        """Return the items that are most like an item."""
        model = service.model_for(body.model, None)
        call_of(http).model = model.name
        version = model.version
        frame = await asyncio.to_thread(similar_items, version.run.model, str(body.item_id), k=body.k)
        items = frame.select("item_id", "score").to_dicts()
        return _json({"model": model.name, "version": version.fingerprint, "items": items})


def _add_data(app: FastAPI, service: Service) -> None:
    """Add the routes of events, users, items and models."""

    @app.post("/v1/events", responses=PROBLEMS)
    async def events(body: EventsBody, http: Request) -> EventsAnswer:
        """Store events durably; they count in the histories of their users at once."""
        stored = [
            stored_event(
                event.event_id,
                str(event.user_id),
                str(event.item_id),
                event.action,
                milliseconds(event.timestamp),
                event.request_id,
            )
            for event in body.events
        ]
        limit = time.time() * 1000 + FUTURE_MS
        for event in stored:
            if event.timestamp_ms > limit:
                raise UserError(f"event {event.event_id}: its timestamp lies in the future")
        await service.append(stored, tenant=call_of(http).tenant)
        service.metrics.events.inc(len(stored))
        return EventsAnswer(
            accepted=len(stored), unknown_items=service.unknown_items([event.item_id for event in stored])
        )

    @app.delete("/v1/users/{user_id}", responses=PROBLEMS)
    async def delete_user(user_id: str, http: Request) -> dict[str, int]:
        """Delete the events of a user, and everything else that the server stores of them."""
        return {"deleted_events": await service.delete_user(user_id, tenant=call_of(http).tenant)}

    @app.get("/v1/items/{item_id}", responses={**PROBLEMS, 404: {"model": Problem}})
    async def item(item_id: str, model: str | None = None) -> dict[str, Any]:
        """Return the columns of an item."""
        columns = service.model_for(model, None).engine.item(item_id)
        if columns is None:
            raise HTTPException(404, f"no item is called {item_id}")
        return columns

    @app.get("/v1/models", responses=PROBLEMS)
    async def models(shadows: bool = False) -> list[ModelAnswer]:
        """List the models that answer; the first is the default. With `shadows`, list the shadow models after them."""
        return [model_answer(model) for model in (service.all_models if shadows else service.models.values())]


def _add_health(app: FastAPI, service: Service) -> None:
    """Add the routes for whoever watches the server."""

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Say that the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"model": Problem}})
    async def readyz() -> dict[str, Any]:
        """Say whether the server can do everything; without its store it recommends, but takes no events."""
        for tenant in service.tenants.values():
            await asyncio.to_thread(tenant.store.check)
        return {"status": "ok", "models": list(service.models)}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Return the metrics in the text format of Prometheus."""
        await asyncio.to_thread(service.observe)
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")
