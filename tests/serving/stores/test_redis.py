"""The Redis store: durability of the server, removal without a trace, a server that is down or hangs."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest
import redis
from support.store_places import CALLS, Place, all_events, event
from support.store_servers import RedisServer, wait_for

from nextitem.core.errors import UserError
from nextitem.serving.stores import StoreUnavailable, open_store, redis_store


@pytest.fixture
def client(redis_server: RedisServer) -> Any:
    with redis.Redis(port=redis_server.port) as client:
        yield client


def contents_of(client: Any) -> bytes:
    """Return the names and the serialised values of all keys."""
    return b"\n".join(key + b"=" + client.dump(key) for key in client.scan_iter(count=1000))


def append_only_file(server: RedisServer) -> bytes:
    """Return the contents of all parts of the file; a part that is replaced at this moment counts as not rewritten."""
    try:
        return b"".join(file.read_bytes() for file in (server.folder / "appendonlydir").iterdir())
    except FileNotFoundError:
        return b"secret"


@pytest.mark.parametrize("bound", [1000, 5])
def test_a_removed_user_leaves_no_byte(
    redis_place: Place, redis_server: RedisServer, client: Any, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "SWEEP_STEP", 7)
    store = redis_place.open(max_events_per_user=bound)
    for number in range(60):
        name = "secret-ada" if number % 3 == 0 else f"user-{number % 5}"
        store.append([event(f"{name}-{number}", name, item_id=f"{name}-tent", timestamp_ms=number)])
    client.config_set("hash-max-listpack-entries", 512)
    assert b"secret-ada" in contents_of(client)
    assert store.delete_user("secret-ada") == 20
    assert b"secret" not in contents_of(client)
    assert len(all_events(store)) == 40
    wait_for(lambda: b"secret" not in append_only_file(redis_server), "the append-only file has the removed user")
    assert store.delete_user("secret-ada") == 0


def test_a_rewrite_that_could_not_start_is_asked_for_again(redis_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store = redis_place.open()
    calls = []

    def rewrite() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise redis.ResponseError("Background append only file rewriting already in progress")

    assert isinstance(store, redis_store.RedisStore)
    monkeypatch.setattr(store._client, "bgrewriteaof", rewrite)
    store.append([event("e1")])
    store.delete_user("ada")
    store.check()
    store.check()
    assert len(calls) == 2


def test_only_the_latest_events_are_indexed(redis_place: Place, client: Any) -> None:
    store = redis_place.open(max_events_per_user=4)
    for number in range(10):
        store.append([event(f"e{number}", timestamp_ms=number)])
    prefix = f"nextitem:{redis_place.namespace}:"
    assert client.zcard(f"{prefix}user:ada") == 4
    assert client.smembers(f"{prefix}longer") == {b"ada"}
    store.delete_user("ada")
    assert {key.decode().removeprefix(prefix) for key in client.scan_iter(f"{prefix}*")} == {"version", "last", "log"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--appendonly", "no"], "appendonly yes"),
        (["--appendonly", "yes", "--appendfsync", "everysec"], "appendfsync always"),
        (["--appendonly", "yes", "--appendfsync", "always", "--maxmemory", "50mb", "--maxmemory-policy",
          "allkeys-lru"], "noeviction"),
        (["--appendonly", "yes", "--appendfsync", "always", "--rename-command", "CONFIG", ""], "does not show"),
    ],
)  # fmt: skip
def test_a_server_that_may_lose_events_is_reported(
    arguments: list[str], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer(*arguments) as server, open_store(server.url) as store:
        notes = store.check()
        assert len(notes) == 1
        assert message in notes[0]
        assert caplog.messages == list(notes)  # logged when it is opened
        store.append([event("e1")])
        assert store.delete_user("ada") == 1


def test_a_full_server_is_unavailable_and_stores_nothing(redis_place: Place, client: Any) -> None:
    store = redis_place.open()
    store.append([event("e1")])
    client.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(StoreUnavailable, match="memory"):
            store.append([event("e2"), event("e3")])
    finally:
        client.config_set("maxmemory", "0")
    assert store.append([event("e2")]).num_new == 1
    assert len(all_events(store)) == 2


def test_a_server_that_is_down_and_comes_back(redis_place: Place) -> None:
    with RedisServer() as server:
        redis_place.url = server.url
        store = redis_place.open(timeout=0.5)
        store.append([event("e1")])
        server.stop()
        for call in CALLS:
            start = time.monotonic()
            with pytest.raises(StoreUnavailable, match=rf"redis://127\.0\.0\.1:{server.port}/0: "):
                call(store)
            assert time.monotonic() - start < 1.5
        late = redis_place.open(timeout=0.5)  # a server that is down is no mistake of the user
        server.start()
        assert all_events(store) == all_events(late) == [event("e1")]
        assert late.append([event("e2")]).num_new == 1


def test_a_server_that_hangs_is_unavailable(redis_place: Place) -> None:
    with RedisServer() as server:
        redis_place.url = server.url
        store = redis_place.open(timeout=0.3)
        store.append([event("e1")])
        server.send(signal.SIGSTOP)
        try:
            for call in CALLS[:2]:
                start = time.monotonic()
                with pytest.raises(StoreUnavailable, match=r"[Tt]imeout"):
                    call(store)
                assert time.monotonic() - start < 1.5
        finally:
            server.send(signal.SIGCONT)
        assert store.append([event("e3")]).num_new == 1


def test_keys_of_another_program_or_version_are_refused(redis_place: Place, client: Any) -> None:
    prefix = f"nextitem:{redis_place.namespace}:"
    client.set(f"{prefix}last", 7)
    with pytest.raises(UserError, match="not of nextitem"):
        redis_place.open()
    client.delete(f"{prefix}last")
    client.hset(f"{prefix}version", "field", 1)
    with pytest.raises(UserError, match="not of nextitem"):
        redis_place.open()
    client.delete(f"{prefix}version")
    client.set(f"{prefix}version", 99)
    with pytest.raises(UserError, match="format 99"):
        redis_place.open()


def test_a_wrong_password_is_told_without_the_password(caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer("--requirepass", "right-secret") as server:
        url = f"redis://:%s@127.0.0.1:{server.port}/0"
        with open_store(url % "wrong-secret") as store, pytest.raises(StoreUnavailable, match=r"(?i)password") as error:
            store.append([event("e1")])
        assert "secret" not in str(error.value)
        assert "secret" not in caplog.text
        with open_store(url % "right-secret") as store:
            assert store.append([event("e1")]).num_new == 1
        assert "secret" not in caplog.text


def test_a_deletion_meets_writers(redis_place: Place) -> None:
    store = redis_place.open(max_events_per_user=3)
    threads = [
        threading.Thread(target=lambda n=n: [store.append([event(f"{n}-{e}", timestamp_ms=e)]) for e in range(30)])
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    removed = sum(store.delete_user("ada") for _ in range(5))
    for thread in threads:
        thread.join()
    assert removed + store.delete_user("ada") == 90
    assert all_events(store) == []
