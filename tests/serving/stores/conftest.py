"""Every kind of store behind one fixture; the servers are started once for each test process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.store_places import Place
from support.store_servers import PostgresServer, RedisServer


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


def place_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[Place]:
    url = {"sqlite": f"sqlite:///{folder / 'events.db'}", "memory": "sqlite:///:memory:"}.get(kind)
    place = Place(kind, url or request.getfixturevalue(f"{kind}_server").url)
    yield place
    for store in place.stores:
        store.close()


@pytest.fixture(params=["sqlite", "memory", "redis", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Every kind of store."""
    yield from place_of(request.param, request, tmp_path)


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def shared_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Every kind of store that several processes can open."""
    yield from place_of(request.param, request, tmp_path)


@pytest.fixture
def sqlite_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    yield from place_of("sqlite", request, tmp_path)


@pytest.fixture
def redis_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    yield from place_of("redis", request, tmp_path)


@pytest.fixture
def postgres_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    yield from place_of("postgres", request, tmp_path)
