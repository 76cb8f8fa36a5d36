"""The play against a server that is a function here: order, retries, the same world again, and what is written."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import polars as pl
import pytest
from support.fake_server import FakeServer, Handler, client, played
from support.simulated_shop import small_shop

from nextitem.core.errors import UserError
from nextitem.simulation.play import SHOWN_SCHEMA, check_server, client_for
from nextitem.simulation.world import HOUR, World, WorldConfig


def test_visits_are_played_and_their_events_name_the_list() -> None:
    server = FakeServer()
    result = played(server, connections=3)
    assert server.most_at_once <= 3
    assert result.num_visits == len(server.requests) > 50
    assert result.num_events == len(server.events) > 20
    table = result.table()
    clicked = table.filter("click")
    by_request = {(row["request_id"], row["item_id"]): row for row in clicked.iter_rows(named=True)}
    assert len(by_request) == len(server.events)
    for event in server.events:
        row = by_request[event["request_id"], event["item_id"]]
        assert event["user_id"] == row["user_id"]
        assert event["action"] == ("purchase" if row["purchase"] else "click")
        assert 0 < event["timestamp"] - row["timestamp"] < HOUR * 1000
    assert len({event["event_id"] for event in server.events}) == len(server.events)


def test_requests_come_in_the_order_of_time_up_to_an_hour() -> None:
    server = FakeServer()
    times = dict(played(server).table().select("request_id", "timestamp").iter_rows())
    in_order = [times[f"r{number + 1}"] for number in range(len(server.requests))]
    assert all(later > earlier - HOUR * 1000 for earlier, later in pairwise(in_order))


def test_the_same_seed_has_the_same_world_whatever_the_connections() -> None:
    def shown_items(connections: int, seed: int) -> tuple[pl.DataFrame, dict[str, Any]]:
        result = played(FakeServer(), connections=connections, seed=seed)
        return result.table().drop("request_id"), result.truth()

    first, second, other = shown_items(1, 4), shown_items(16, 4), shown_items(1, 5)
    assert first[0].equals(second[0])
    assert first[1] == second[1]
    assert not first[0].equals(other[0])


def test_the_truth_is_the_mean_of_the_probabilities(tmp_path: Path) -> None:
    result = played(FakeServer())
    result.write(tmp_path / "out")
    table = pl.read_parquet(tmp_path / "out" / "shown.parquet")
    assert dict(table.schema) == SHOWN_SCHEMA
    truth = json.loads((tmp_path / "out" / "truth.json").read_text())
    assert truth["is_complete"]
    assert [entry["model"] for entry in truth["models"]] == ["first", "last"]
    for entry in truth["models"]:
        own = table.filter(model=entry["model"])
        assert entry["impressions"] == own.height == 6 * entry["lists"]
        assert entry["click"]["expected"] == pytest.approx(own["click_probability"].sum())
        assert entry["click"]["observed"] == own["click"].sum()
        assert entry["click"]["per_impression"] == pytest.approx(own["click_probability"].mean())
        no_click = (1 - pl.col("click_probability")).product().alias("no_click")
        misses = own.group_by("request_id").agg(no_click)["no_click"].to_numpy()
        assert entry["click"]["per_list"] == pytest.approx(1 - misses.mean())
        assert entry["purchase"]["per_list"] < entry["click"]["per_list"]


def test_a_busy_server_is_asked_again() -> None:
    server = FakeServer(busy_calls=1)
    assert played(server, customers=1, days=10).num_visits >= 1


def test_what_the_server_refuses_is_said_in_one_line() -> None:
    def failing(status: int, body: Any) -> Handler:
        return lambda _: httpx2.Response(status, json=body)

    for handler, message in (
        (failing(401, {"error": "the token is missing"}), "status 401: the token is missing; pass --token"),
        (failing(400, {"error": "no such user"}), "http://fake/v1/recommend: status 400: no such user"),
        (failing(500, ["?"]), "status 500"),
        (lambda _: httpx2.Response(200, text="<html>"), "no JSON"),
    ):
        with pytest.raises(UserError, match=message):
            played(handler, customers=1)

    def unreachable(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("connection refused", request=request)

    with pytest.raises(UserError, match=r"cannot be reached \(connection refused\)"):
        played(unreachable, customers=1)
    with pytest.raises(UserError, match="write the address"):
        client_for("localhost:8000")


def test_another_catalogue_is_refused() -> None:
    world = World(small_shop(), WorldConfig(customers=1))

    async def check(handler: Any) -> list[str]:
        async with client(handler) as session:
            return await check_server(session, world)

    assert asyncio.run(check(FakeServer())) == ["first", "last"]

    def other(request: httpx2.Request) -> httpx2.Response:
        is_item = request.url.path.startswith("/v1/items")
        return httpx2.Response(404 if is_item else 200, json=[] if not is_item else {"error": "no item"})

    with pytest.raises(UserError, match="other items than the simulated shop"):
        asyncio.run(check(other))
