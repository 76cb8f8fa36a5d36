"""Play simulated customers against a server: recommend, look, click or buy, send the events, come back.

Visits are played in the order of simulated time. Those within an hour are played at the same time, as no customer has
two of them. So a server sees the same world whatever order its answers arrive in.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import polars as pl

from nextitem.core.errors import UserError
from nextitem.simulation.world import DAY, HOUR, SECONDS_PER_SLOT, Visit, World

BUSY = (429, 503)  # answers after which a request is sent again
MAX_TRIES = 8
MAX_WAIT = 5.0  # seconds before a request is sent again
SHOWN_SCHEMA = {
    "request_id": pl.String,
    "user_id": pl.String,
    "item_id": pl.String,
    "timestamp": pl.Int64,
    "slot": pl.Int32,
    "model": pl.String,
    "version": pl.String,
    "fallback": pl.Boolean,
    "click_probability": pl.Float64,
    "purchase_probability": pl.Float64,
    "click": pl.Boolean,
    "purchase": pl.Boolean,
}


@dataclass
class Playthrough:
    """Everything that happened in a simulation.

    Attributes:
        world: the customers.
        rows: one row for each shown item, as in `SHOWN_SCHEMA`; the timestamp is in milliseconds of simulated time.
        num_visits: number of visits.
        num_events: number of events that the server acknowledged.
        num_finds: number of those whose items were found without a list.
        is_complete: whether the simulation ran to its last day.

    """

    world: World
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    num_visits: int = 0
    num_events: int = 0
    num_finds: int = 0
    is_complete: bool = False

    def table(self) -> pl.DataFrame:
        """Return the shown items with their true probabilities and outcomes, in the order of time, user and slot."""
        return pl.DataFrame(self.rows, schema=SHOWN_SCHEMA, orient="row").sort("timestamp", "user_id", "slot")

    def truth(self) -> dict[str, Any]:
        """Return the true rates by version of a model, and by model: means of the customers' probabilities."""
        no_click = (1 - pl.col("click_probability")).product()
        no_purchase = (1 - pl.col("purchase_probability")).product()
        lists = (
            self.table()
            .group_by("request_id", maintain_order=True)
            .agg(
                pl.col("model", "version", "user_id", "fallback").first(),
                pl.len().alias("items"),
                (1 - no_click).alias("any_click"),
                (1 - no_purchase).alias("any_purchase"),
                pl.col("click_probability", "purchase_probability", "click", "purchase").sum(),
            )
        )
        return {
            "settings": self.world.config.model_dump(mode="json"),
            "is_complete": self.is_complete,
            "visits": self.num_visits,
            "events": self.num_events,
            "finds": self.num_finds,
            "models": _rates(lists, "model", "version"),
            "pooled": _rates(lists, "model"),
        }

    def write(self, folder: str | Path) -> None:
        """Write truth.json and shown.parquet into a folder."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        (place / "truth.json").write_text(json.dumps(self.truth(), indent=2) + "\n", encoding="utf-8")
        self.table().write_parquet(place / "shown.parquet")


def _rates(lists: pl.DataFrame, *keys: str) -> list[dict[str, Any]]:
    """Return the true rates of the lists with equal values of some columns."""
    entries = []
    for values, part in sorted(lists.group_by(*keys)):
        entry: dict[str, Any] = dict(zip(keys, values, strict=True))
        entry |= {"lists": part.height, "users": part["user_id"].n_unique()}
        entry |= {"impressions": int(part["items"].sum()), "fallbacks": int(part["fallback"].sum())}
        for name in ("click", "purchase"):
            expected = float(part[f"{name}_probability"].sum())
            entry[name] = {
                "per_list": float(part[f"any_{name}"].mean()),  # type: ignore[arg-type]
                "per_impression": expected / entry["impressions"],
                "expected": expected,
                "observed": int(part[name].sum()),
            }
        entries.append(entry)
    return entries


async def check_server(client: httpx2.AsyncClient, world: World) -> list[str]:
    """Return the names of the models that a server serves.

    Raises:
        UserError: it cannot be reached, refuses the token, or does not serve the simulated shop.

    """
    models = await _ask(client, "GET", "/v1/models")
    item = world.shop.items.row(0, named=True)
    columns = await _ask(client, "GET", f"/v1/items/{item['item_id']}", allow_missing=True)
    if columns is None or columns.get("title") != item["title"]:
        raise UserError(
            f"{client.base_url}: the server has other items than the simulated shop; serve runs that were trained with "
            "--data shop"
        )
    return [model["name"] for model in models]


async def play(
    world: World,
    client: httpx2.AsyncClient,
    *,
    connections: int = 16,
    playthrough: Playthrough | None = None,
    minutes: float | None = None,
    items: str | Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Playthrough:
    """Play all visits until the last day, and return what happened.

    Args:
        world: the customers.
        client: sends the requests; its base URL is that of the server.
        connections: largest number of requests at the same time.
        playthrough: where to record what happens, so that it is not lost if the play is interrupted.
        minutes: time in which the days pass, if the server is fast enough; None: as fast as it can.
        items: folder whose items.parquet has the items that have arrived; it is written anew each simulated day. None:
            nowhere.
        progress: is called with a line of text at the end of each simulated day.

    Raises:
        UserError: the server does not answer, or refuses a request.

    """
    record = playthrough or Playthrough(world)
    heap = [visit for visit in world.first_visits() if visit.time < world.end]
    heapq.heapify(heap)
    limit, day, started = asyncio.Semaphore(connections), 1, time.monotonic()
    if items is not None:
        world.write_items(items, time=world.start + DAY)
    while heap:
        batch = [heapq.heappop(heap)]
        while heap and heap[0].time < batch[0].time + HOUR:
            batch.append(heapq.heappop(heap))
        while batch[0].time >= world.start + day * DAY:
            progress(f"day {day} of {world.config.days:g}: {record.num_visits:,} visits, {record.num_events:,} events")
            day += 1
            if items is not None:
                world.write_items(items, time=world.start + day * DAY)
        if minutes is not None:
            share = (batch[0].time - world.start) / (world.end - world.start)
            await asyncio.sleep(max(0.0, started + 60 * minutes * share - time.monotonic()))
        for visit in await asyncio.gather(*(_visit(record, client, visit, limit) for visit in batch)):
            if visit.time < world.end:
                heapq.heappush(heap, visit)
    record.is_complete = True
    return record


async def _visit(record: Playthrough, client: httpx2.AsyncClient, visit: Visit, limit: asyncio.Semaphore) -> Visit:
    """Play one visit and return the next one of the customer."""
    world = record.world
    customer = world.customers[visit.customer]
    async with limit:
        body = {"user_id": customer.user_id, "k": len(world.config.examination)}
        shown_list = await _ask(client, "POST", "/v1/recommend", body)
        item_ids = [str(item["item_id"]) for item in shown_list["items"]]
        answer = world.answer(visit, item_ids)
        finds = world.browse(visit)
        events = [
            _event(shown_list["request_id"], visit, customer.user_id, slot, item_ids[slot], answer.purchases[slot])
            for slot in range(len(item_ids))
            if answer.clicks[slot]
        ]
        for place, find in enumerate(finds, start=len(item_ids)):
            event = _event(shown_list["request_id"], visit, customer.user_id, place, find.item_id, find.is_purchase)
            del event["request_id"]  # no list has shown it
            events.append(event)
        if events:
            await _ask(client, "POST", "/v1/events", {"events": events})
    record.num_visits += 1
    record.num_events += len(events)
    record.num_finds += len(finds)
    origin = (shown_list["model"], shown_list["version"], bool(shown_list["fallback"]))
    figures = (answer.click_probabilities, answer.purchase_probabilities, answer.clicks, answer.purchases)
    columns = zip(item_ids, *(values.tolist() for values in figures), strict=True)
    record.rows += [
        (shown_list["request_id"], customer.user_id, item, int(visit.time * 1000), slot, *origin, *values)
        for slot, (item, *values) in enumerate(columns, start=1)
    ]
    return answer.next_visit


def _event(request_id: str, visit: Visit, user_id: str, place: int, item_id: str, is_purchase: Any) -> dict[str, Any]:
    """Return an event of a visit; events of a visit follow each other at places from 0."""
    return {
        "event_id": f"{request_id}-{place + 1}",
        "user_id": user_id,
        "item_id": item_id,
        "action": "purchase" if is_purchase else "click",
        "timestamp": int(visit.time * 1000) + (place + 1) * SECONDS_PER_SLOT * 1000,
        "request_id": request_id,
    }


async def _ask(
    client: httpx2.AsyncClient, method: str, path: str, body: Any = None, *, allow_missing: bool = False
) -> Any:
    """Return the JSON of an answer; a server that is busy is asked again. Raises UserError for any other problem."""
    for tries in range(1, MAX_TRIES + 1):
        try:
            response = await client.request(method, path, json=body)
        except httpx2.InvalidURL as error:
            raise UserError(f"{client.base_url}: no valid address ({error})") from None
        except httpx2.TransportError as error:
            reason = str(error) or type(error).__name__
            raise UserError(
                f"{client.base_url}: the server cannot be reached ({reason}); start nextitem serve"
            ) from None
        if response.status_code in BUSY and tries < MAX_TRIES:
            await asyncio.sleep(_waiting_time(response.headers.get("retry-after"), tries))
            continue
        if response.status_code == 404 and allow_missing:
            return None
        if response.status_code != 200:
            raise _refused(client, path, response)
        with suppress(ValueError):
            return response.json()
        raise UserError(f"{_address(client, path)}: the answer is no JSON; is this a nextitem server?")
    raise AssertionError("the last try returns or raises")


def _refused(client: httpx2.AsyncClient, path: str, response: httpx2.Response) -> UserError:
    problem = f"status {response.status_code}"
    with suppress(ValueError, TypeError, KeyError):
        problem += f": {response.json()['error']}"
    hint = "; pass --token" if response.status_code == 401 else ""
    return UserError(f"{_address(client, path)}: {problem}{hint}")


def _address(client: httpx2.AsyncClient, path: str) -> str:
    return str(client.base_url).rstrip("/") + path


def _waiting_time(header: str | None, tries: int) -> float:
    """Return the seconds to wait: what the server asks for, but not less after each try."""
    requested = float(header) if header is not None and header.isdigit() else 0.0
    return min(MAX_WAIT, max(requested, 0.1 * float(2**tries)))


def client_for(url: str, *, token: str | None = None, connections: int = 16) -> httpx2.AsyncClient:
    """Return a client for a server. Raises UserError if the URL is not one of HTTP."""
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url}: write the address of a server as http://localhost:8000")
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    limits = httpx2.Limits(max_connections=connections)
    return httpx2.AsyncClient(base_url=url, headers=headers, timeout=60.0, limits=limits)


def summary(truth: dict[str, Any]) -> Sequence[str]:
    """Return the true rates of each version of a model as lines of text."""
    return [
        f"{entry['model']} {entry['version'][:8]}: {entry['lists']:,} lists, {entry['users']:,} users, true clicks per "
        f"list {entry['click']['expected'] / entry['lists']:.4f}, true purchases per list "
        f"{entry['purchase']['expected'] / entry['lists']:.4f}"
        for entry in truth["models"]
    ]
