"""The HTTP API: routes, errors and metrics around a Service. Its OpenAPI document is at /openapi.json."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException as AnyHTTPException

from nextitem.core.errors import UserError
from nextitem.pipeline.recommend import similar_items
from nextitem.serving.batching import ClosedError, QueueFullError
from nextitem.serving.pages import page_token, shown_items
from nextitem.serving.playground.abilities import abilities
from nextitem.serving.playground.routes import add_playground
from nextitem.serving.playground.traffic import Traffic
from nextitem.serving.requests import ServedRequest
from nextitem.serving.schemas import (
    EventsAnswer,
    EventsBody,
    Item,
    ListAnswer,
    ListExplanation,
    ModelAnswer,
    Problem,
    RankBody,
    RecommendBody,
    SimilarBody,
)
from nextitem.serving.service import Answer, ServedModel, Service, stored_event
from nextitem.serving.stores.store import StoreUnavailable
from nextitem.serving.values import milliseconds

log = logging.getLogger("nextitem.serving")
MAX_BODY = 2 * 2**20  # bytes
FUTURE_MS = 5 * 60_000  # by which the clock of a client may be ahead
SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.5, 1.0, 2.0, 5.0)
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The request is invalid."},
    401: {"model": Problem, "description": "The token is missing or wrong."},
    413: {"model": Problem, "description": "The body is too large."},
    422: {"model": Problem, "description": "A field is unknown, missing, or out of its limits."},
    429: {"model": Problem, "description": "Too many requests wait; Retry-After says when to come again."},
    503: {"model": Problem, "description": "The store or the server cannot answer now."},
}


class _Metrics:
    """The metrics of one server, for Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "nextitem_requests_total", "Requests by path and status.", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "nextitem_request_seconds", "Time of a request.", ["path"], buckets=SECONDS, registry=self.registry
        )
        self.fallbacks = Counter(
            "nextitem_fallbacks_total", "Lists that a model did not make.", ["model", "reason"], registry=self.registry
        )
        self.events = Counter("nextitem_events_total", "Events that were stored.", registry=self.registry)
        self.waiting = Gauge(
            "nextitem_waiting_requests", "Requests that wait for a model.", ["model"], registry=self.registry
        )


def make_app(service: Service, *, tokens: Sequence[str] = (), shows_users: bool = True) -> FastAPI:
    """Return the application.

    Args:
        service: the models and the store; it is closed when the application ends.
        tokens: bearer tokens that are accepted; none: everybody may ask.
        shows_users: whether the playground may read ids of users and their histories.

    """
    metrics, traffic = _Metrics(), Traffic()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    def authorise(request: Request) -> None:
        if tokens:
            scheme, _, token = request.headers.get("authorization", "").partition(" ")
            is_known = any(hmac.compare_digest(token.encode(), each.encode()) for each in tokens)
            if scheme.lower() != "bearer" or not is_known:
                raise HTTPException(401, "the header Authorization: Bearer TOKEN is missing or wrong")

    app = FastAPI(
        title="nextitem",
        description="Recommendations, ranking, similar items and events.",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
    )
    _add_errors(app)
    _add_limits(app, metrics)
    _add_lists(app, service, metrics, traffic, [Depends(authorise)])
    _add_data(app, service, metrics, [Depends(authorise)])
    add_playground(app, service, traffic, [Depends(authorise)], shows_users=shows_users)
    _add_health(app, service, metrics)
    return app


def _add_errors(app: FastAPI) -> None:
    """Let every error have a status and one line that says what is wrong."""

    def problem(status: int, message: str, **headers: str) -> JSONResponse:
        return JSONResponse({"error": message}, status, headers)

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

    app.add_exception_handler(UserError, handler(400))
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(AnyHTTPException, refused)
    app.add_exception_handler(QueueFullError, handler(429, **{"Retry-After": "1"}))
    app.add_exception_handler(ClosedError, handler(503, **{"Retry-After": "5"}))
    app.add_exception_handler(StoreUnavailable, handler(503, **{"Retry-After": "5"}))


def _add_limits(app: FastAPI, metrics: _Metrics) -> None:
    """Bound the size of bodies, and count and time the requests."""

    @app.middleware("http")
    async def limit_and_measure(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        started = time.perf_counter()
        length = request.headers.get("content-length")
        if request.method in ("POST", "PUT") and (length is None or not length.isdigit()):
            response: Response = JSONResponse({"error": "the header Content-Length is needed"}, 411)
        elif length is not None and int(length) > MAX_BODY:
            response = JSONResponse({"error": f"the body has {length} bytes; at most {MAX_BODY} are read"}, 413)
        else:
            response = await answer(request)
        route = request.scope.get("route")
        path = getattr(route, "path", "other")
        metrics.requests.labels(path, str(response.status_code)).inc()
        metrics.seconds.labels(path).observe(time.perf_counter() - started)
        return response


def _list_answer(answer: Answer, next_page: str | None = None) -> ListAnswer:
    result = answer.result
    channels = result.channels or (None,) * len(result.item_ids)
    rows = zip(result.item_ids, result.scores, result.titles or map(str, result.item_ids), channels, strict=True)
    return ListAnswer(
        request_id=answer.request_id,
        model=answer.model.name,
        version=answer.model.version,
        items=[Item(item_id=item, score=score, title=title, channel=channel) for item, score, title, channel in rows],
        fallback=answer.fallback_reason is not None,
        fallback_reason=answer.fallback_reason,
        relaxed=list(result.relaxed),
        skipped=list(result.skipped),
        unknown_exclusions=list(result.unknown_exclusions),
        guided=result.guided,
        next_page=next_page,
        explanation=None if result.explanation is None else ListExplanation(**result.explanation.to_json()),
    )


def _add_lists(app: FastAPI, service: Service, metrics: _Metrics, traffic: Traffic, needs: list[Any]) -> None:
    """Add the routes that return lists of items."""

    async def answered(route: str, model: ServedModel, request: ServedRequest) -> Answer:
        started = time.perf_counter()
        answer = await service.recommend(model, request)
        if answer.fallback_reason is not None:
            metrics.fallbacks.labels(answer.model.name, answer.fallback_reason).inc()
        seconds = time.perf_counter() - started
        traffic.record(route, model.name, answer.result, fallback_reason=answer.fallback_reason, seconds=seconds)
        return answer

    @app.post("/v1/recommend", dependencies=needs, responses=PROBLEMS, response_model_exclude_none=True)
    async def recommend(body: RecommendBody) -> ListAnswer:
        """Recommend items to a user, or for a history."""
        request, shown_ids = body.to_request(), shown_items(body.page)
        model = service.model_for(body.model, request.user_id)
        answer = await answered("recommend", model, request.without(shown_ids))
        is_last = len(answer.result.item_ids) < request.k
        token = None if is_last else page_token([*shown_ids, *map(str, answer.result.item_ids)])
        return _list_answer(answer, token)

    @app.post("/v1/rank", dependencies=needs, responses=PROBLEMS, response_model_exclude_none=True)
    async def rank(body: RankBody) -> ListAnswer:
        """Order given items for a user, or for a history."""
        request = body.to_request()
        return _list_answer(await answered("rank", service.model_for(body.model, request.user_id), request))

    @app.post("/v1/similar", dependencies=needs, responses=PROBLEMS)
    async def similar(body: SimilarBody) -> dict[str, Any]:
        """Return the items that are most like an item."""
        model = service.model_for(body.model, None)
        frame = await asyncio.to_thread(similar_items, model.run.model, str(body.item_id), k=body.k)
        return {"model": model.name, "version": model.version, "items": frame.select("item_id", "score").to_dicts()}


def _add_data(app: FastAPI, service: Service, metrics: _Metrics, needs: list[Any]) -> None:
    """Add the routes of events, users, items and models."""

    @app.post("/v1/events", dependencies=needs, responses=PROBLEMS)
    async def events(body: EventsBody) -> EventsAnswer:
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
        await service.append(stored)
        metrics.events.inc(len(stored))
        return EventsAnswer(
            accepted=len(stored), unknown_items=service.unknown_items([event.item_id for event in stored])
        )

    @app.delete("/v1/users/{user_id}", dependencies=needs, responses=PROBLEMS)
    async def delete_user(user_id: str) -> dict[str, int]:
        """Delete the events of a user, and everything else that the server keeps of them."""
        return {"deleted_events": await service.delete_user(user_id)}

    @app.get("/v1/items/{item_id}", dependencies=needs, responses={**PROBLEMS, 404: {"model": Problem}})
    async def item(item_id: str, model: str | None = None) -> dict[str, Any]:
        """Return the columns of an item."""
        columns = service.model_for(model, None).engine.item(item_id)
        if columns is None:
            raise HTTPException(404, f"no item is called {item_id}")
        return columns

    @app.get("/v1/models", dependencies=needs, responses=PROBLEMS)
    async def models() -> list[ModelAnswer]:
        """List the models that are served; the first is the default."""
        return [
            ModelAnswer(
                name=model.name,
                kind=model.run.name,
                version=model.version,
                num_items=model.run.model.num_items,
                weight=model.weight,
                **abilities(model.engine.model),
            )
            for model in service.models.values()
        ]


def _add_health(app: FastAPI, service: Service, metrics: _Metrics) -> None:
    """Add the routes for whoever watches the server."""

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Say that the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"model": Problem}})
    async def readyz() -> dict[str, Any]:
        """Say whether the server can do everything; without its store it recommends, but takes no events."""
        await asyncio.to_thread(service.store.check)
        return {"status": "ok", "models": list(service.models)}

    @app.get("/metrics")
    async def prometheus() -> Response:
        """Return the metrics in the text format of Prometheus."""
        for model in service.models.values():
            metrics.waiting.labels(model.name).set(len(model.batcher))
        return PlainTextResponse(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")
