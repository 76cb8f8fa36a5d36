"""Routes of the playground: its page, and what the page reads beyond the rest of the API.

The files of the page are part of the package. They are read once, and a request can name one of them only. Their
headers forbid everything from elsewhere, so that the page works without a network and no text of a catalogue can load
or run anything.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Annotated, Any

import polars as pl
from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from pydantic import BaseModel

from nextitem.core.catalog import ACTION
from nextitem.core.errors import UserError
from nextitem.serving.gate import call_of
from nextitem.serving.playground.catalogue import CatalogueItem, CatalogueView, ColumnValues, Prefix
from nextitem.serving.playground.traffic import AnsweredRequest, Traffic
from nextitem.serving.requests import ServedRequest
from nextitem.serving.schemas import Problem
from nextitem.serving.served_model import ServedModel
from nextitem.serving.service import Service
from nextitem.serving.tenants import Tenant

MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The request is invalid."},
    401: {"model": Problem, "description": "The token is missing or wrong."},
    403: {"model": Problem, "description": "Users are not shown."},
    422: {"model": Problem, "description": "A field is out of its limits."},
}
MAX_FOUND = 100  # items of one answer
MAX_USERS = 100  # ids of one answer
MAX_EVENTS = 500  # events of a history

Name = Annotated[str | None, Query(max_length=128, description="Name of a model; without it, the default.")]


class FoundItems(BaseModel):
    """Items that match a search."""

    model: str
    num_matches: int
    """Number of all items that match."""
    items: list[CatalogueItem]


class KnownUsers(BaseModel):
    """Ids of users of the data set."""

    users: list[str]


class EventOfHistory(BaseModel):
    """One event of a history, as the model reads it."""

    item_id: str | int
    title: str
    action: str | None = None
    timestamp: int | None = None
    """Milliseconds since 1970 (UTC)."""


class UserHistory(BaseModel):
    """The latest events of a user, oldest first."""

    model: str
    num_events: int
    """Number of all events that the model can read."""
    events: list[EventOfHistory]


class _Views:
    """Views of the catalogues of the served models; one is replaced when its model is."""

    def __init__(self) -> None:
        self._views: dict[str, CatalogueView] = {}

    def of(self, model: ServedModel) -> CatalogueView:
        """Return the view of a model's catalogue."""
        view = self._views.get(model.name)
        if view is None or view.model is not model.engine.model:
            view = self._views[model.name] = CatalogueView(model.engine.model)
        return view


def add_playground(app: FastAPI, service: Service, traffic: Mapping[str, Traffic], *, shows_users: bool) -> None:
    """Add the page and its routes to the application.

    Args:
        app: the application.
        service: the models and the store.
        traffic: the latest answers, by the namespace of the tenant.
        shows_users: whether ids of users and their histories can be read.

    """
    _add_page(app)
    router, views = APIRouter(responses=PROBLEMS), _Views()
    _add_catalogue(router, service, views)
    _add_users(router, service, shows_users=shows_users)

    @router.get("/v1/traffic")
    async def latest_answers(
        http: Request, limit: Annotated[int, Query(ge=1, le=500)] = 100, after: Annotated[int, Query(ge=0)] = 0
    ) -> list[AnsweredRequest]:
        """Return the latest answers whose number is above `after`, oldest first, without anything about users."""
        return traffic[call_of(http).tenant.namespace].latest(limit, after=after)

    app.include_router(router)


def _add_page(app: FastAPI) -> None:
    """Add the page at / and its files."""
    folder = files("nextitem.serving.playground") / "page"
    contents = {
        file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in MEDIA_TYPES
    }

    def answer(request: Request, name: str) -> Response:
        tag = f'"{hashlib.sha256(contents[name]).hexdigest()[:16]}"'
        headers = {**HEADERS, "ETag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(contents[name], headers=headers, media_type=MEDIA_TYPES[name.rpartition(".")[2]])

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        """Return the page."""
        return answer(request, "index.html")

    @app.get("/playground/{name}", include_in_schema=False)
    async def page_file(request: Request, name: str) -> Response:
        """Return a file of the page."""
        if name not in contents:
            raise HTTPException(404, "the page has no such file")
        return answer(request, name)


def _add_catalogue(router: APIRouter, service: Service, views: _Views) -> None:
    """Add the routes that show catalogues."""

    @router.get("/v1/items")
    async def search_items(
        search: Annotated[str, Query(max_length=200, description="Words of the title or id; none: any item.")] = "",
        item_id: Annotated[
            Sequence[Annotated[str, Query(max_length=512)]],
            Query(max_length=MAX_FOUND, description="Ids to look up instead; unknown ids are skipped."),
        ] = (),
        limit: Annotated[int, Query(ge=1, le=MAX_FOUND)] = 20,
        model: Name = None,
    ) -> FoundItems:
        """Search items by words of their title or id, the most popular first, or look some up by id."""
        served = service.model_for(model, None)
        view = views.of(served)
        if item_id:
            items = await asyncio.to_thread(view.lookup, item_id)
            return FoundItems(model=served.name, num_matches=len(items), items=items)
        items, num_matches = await asyncio.to_thread(view.search, search, limit)
        return FoundItems(model=served.name, num_matches=num_matches, items=items)

    @router.get("/v1/columns")
    async def columns(model: Name = None) -> list[ColumnValues]:
        """List the columns of items by which lists can be filtered, with their most frequent values."""
        view = views.of(service.model_for(model, None))
        return await asyncio.to_thread(lambda: view.columns)

    @router.get("/v1/prefixes")
    async def prefixes(
        codes: Annotated[
            str,
            Query(max_length=500, pattern=r"^(\d{1,9}(,\d{1,9})*)?$", description="Codes, such as 3,17; none: all."),
        ] = "",
        model: Name = None,
    ) -> Prefix:
        """Return what follows a prefix of semantic IDs: its continuations, or the items of a whole semantic ID."""
        served = service.model_for(model, None)
        numbers = [int(code) for code in codes.split(",") if code]
        return await asyncio.to_thread(views.of(served).prefix, served.name, numbers)


def _add_users(router: APIRouter, service: Service, *, shows_users: bool) -> None:
    """Add the routes that show users."""

    def check_permission(http: Request) -> Tenant:
        if not shows_users:
            raise HTTPException(403, "users are not listed without tokens; set NEXTITEM_TOKENS, or serve at 127.0.0.1")
        return call_of(http).tenant

    @router.get("/v1/users")
    async def users(
        http: Request,
        search: Annotated[str, Query(max_length=200, description="Beginning of the ids.")] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_USERS)] = 20,
        model: Name = None,
    ) -> KnownUsers:
        """List users of the data set whose ids begin with a text; they are those of the default tenant."""
        if check_permission(http) is not service.default_tenant:
            return KnownUsers(users=[])
        histories = service.model_for(model, None).engine.histories
        return KnownUsers(users=await asyncio.to_thread(_starting_with, histories.user_ids(), search.strip(), limit))

    @router.get("/v1/users/{user_id}/history")
    async def history(
        http: Request, user_id: str, limit: Annotated[int, Query(ge=1, le=MAX_EVENTS)] = 50, model: Name = None
    ) -> UserHistory:
        """Return the latest events of a user, as the model reads them; none for an unknown user."""
        tenant, served = check_permission(http), service.model_for(model, user_id)
        max_history = service.config.max_history
        return await asyncio.to_thread(_history, tenant, served, user_id, limit, max_history=max_history)


def _starting_with(ids: pl.Series, text: str, limit: int) -> list[str]:
    texts = ids.cast(pl.String)
    return texts.filter(texts.str.starts_with(text)).head(limit).to_list()


def _history(tenant: Tenant, model: ServedModel, user_id: str, limit: int, *, max_history: int) -> UserHistory:
    """Return the latest events of a user: of the data set, then of the store if it can be reached."""
    engine = model.version.engines[tenant.namespace]
    new_events = tenant.new_events([user_id], limit=max_history)
    read = engine.histories.read([ServedRequest(user_id=user_id)], new_events)
    if read.errors:
        raise UserError(str(read.errors[0]))
    (_, batch), *_ = read.batches
    catalog, numbers = engine.model.catalog, batch.items.values.numpy()
    recent = numbers[-limit:]
    actions, times = [None] * len(recent), [None] * len(recent)
    action_names = catalog.events[ACTION].values if batch.actions is not None else None
    if batch.actions is not None and action_names is not None:
        names = [None, *action_names.to_list()]
        actions = [names[code] for code in batch.actions.values[-limit:].tolist()]
    if batch.timestamps is not None:
        times = batch.timestamps.values[-limit:].tolist()
    rows = zip(catalog.ids.decode(recent).to_list(), engine.titles[recent - 1].to_list(), actions, times, strict=True)
    return UserHistory(
        model=model.name,
        num_events=len(numbers),
        events=[
            EventOfHistory(item_id=item, title=title, action=action, timestamp=time)
            for item, title, action, time in rows
        ],
    )
