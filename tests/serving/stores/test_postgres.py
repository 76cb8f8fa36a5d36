"""The PostgreSQL store: order of commits, removal without a trace, a server that is down or hangs."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import sql
from support.store_places import CALLS, Place, all_events, event, follow, ids
from support.store_servers import PostgresServer

from nextitem.core.errors import UserError
from nextitem.serving.stores import StoreUnavailable, open_store
from nextitem.serving.stores.postgres_store import PostgresStore


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[Any]:
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        yield connection


def test_an_event_that_is_committed_late_is_not_skipped(postgres_place: Place, database: Any) -> None:
    """A trigger delays the commit of one event; another one, appended later, must not be read before it."""
    store = postgres_place.open(timeout=5)
    table = f"nextitem_{postgres_place.namespace}_events"
    database.execute(
        f"CREATE FUNCTION delay_{table}() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF NEW.item_id = 'slow' THEN PERFORM pg_sleep(0.6); END IF; RETURN NULL; END $$"
    )
    database.execute(
        f"CREATE CONSTRAINT TRIGGER delay AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED "
        f"FOR EACH ROW EXECUTE FUNCTION delay_{table}()"
    )
    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(store.append, [event("slow", item_id="slow")])
        time.sleep(0.2)  # its position is used, its transaction is not finished
        fast = threads.submit(store.append, [event("fast")])
        events = follow(store, 10, is_over=lambda: slow.done() and fast.done())
    assert ids(events) == ["slow", "fast"]


def test_a_removed_user_leaves_no_row_and_no_statistics(postgres_place: Place, database: Any) -> None:
    store = postgres_place.open()
    table = f"nextitem_{postgres_place.namespace}_events"
    store.append(event(f"secret-{number}" if number % 2 else f"e{number}", "secret" if number % 2 else "bob",
                       item_id="secret-tent" if number % 2 else "tent") for number in range(400))  # fmt: skip
    database.execute(f"ANALYZE {table}")  # as the server does by itself: it copies frequent values
    assert store.delete_user("secret") == 200
    tables = database.execute(
        "SELECT format('%I.%I', schemaname, relname) FROM pg_stat_all_tables WHERE relname NOT LIKE 'pg_toast%'"
    ).fetchall()
    assert len(tables) > 50
    for (name,) in tables:
        rows = database.execute(f"SELECT t::text FROM {name} AS t").fetchall()
        assert not [row for row in rows if "secret" in row[0]], name
    statistics = "SELECT count(*) FROM pg_stats AS s WHERE s::text LIKE '%secret%'"
    assert database.execute(statistics).fetchone() == (0,)
    database.execute("CREATE EXTENSION IF NOT EXISTS pgstattuple")
    assert database.execute(f"SELECT dead_tuple_count FROM pgstattuple('{table}')").fetchone() == (0,)
    assert len(all_events(store)) == 200


def test_histories_read_an_index_whatever_the_number_of_events(postgres_place: Place, database: Any) -> None:
    store = postgres_place.open()
    store.append(event(f"e{number}", f"u{number % 3}", timestamp_ms=number) for number in range(3000))
    assert isinstance(store, PostgresStore)
    statement = sql.SQL("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) ") + store._select_histories
    plan = "\n".join(row[0] for row in database.execute(statement, (["u0", "u1"], 5)))
    assert re.search(rf"Index Scan.* nextitem_{postgres_place.namespace}_by_user .*rows=5\b", plan), plan


def test_a_server_that_is_down_and_comes_back(postgres_place: Place, postgres_server: PostgresServer) -> None:
    store = postgres_place.open(timeout=1)
    store.append([event("e1")])
    postgres_server.stop()
    try:
        for call in CALLS:
            start = time.monotonic()
            with pytest.raises(StoreUnavailable, match=rf"postgresql://tester@127\.0\.0\.1:{postgres_server.port}/"):
                call(store)
            assert time.monotonic() - start < 1.5
        late = postgres_place.open()  # a server that is down is no mistake of the user
    finally:
        postgres_server.start()
    assert all_events(store) == all_events(late) == [event("e1")]
    assert late.append([event("e2")]).num_new == 1


def test_connections_of_before_a_restart_are_replaced(postgres_place: Place, postgres_server: PostgresServer) -> None:
    store = postgres_place.open()
    store.append([event("e1")])
    postgres_server.stop()
    postgres_server.start()
    assert store.append([event("e2")]).num_new == 1  # no call fails if the server was down between two


def test_a_server_that_hangs_is_unavailable(postgres_place: Place, database: Any) -> None:
    store = postgres_place.open(timeout=0.3)
    store.append([event("e1")])
    (process,) = database.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'nextitem' AND state = 'idle' "
        "AND query = 'COMMIT' ORDER BY query_start DESC LIMIT 1"
    ).fetchone()
    os.kill(process, signal.SIGSTOP)
    try:
        start = time.monotonic()
        with pytest.raises(StoreUnavailable, match="timeout"):
            store.append([event("e2")])
        assert time.monotonic() - start < 2
        assert store.append([event("e3")]).num_new == 1  # by a new connection
    finally:
        os.kill(process, signal.SIGCONT)
    assert store.append([event("e4")]).num_new == 1


def test_a_lock_of_another_session_makes_the_store_unavailable(postgres_place: Place, database: Any) -> None:
    store = postgres_place.open(timeout=0.3)
    with database.transaction():
        database.execute(f"LOCK TABLE nextitem_{postgres_place.namespace}_events")
        with pytest.raises(StoreUnavailable, match="lock timeout"):
            store.append([event("e1")])
    assert store.append([event("e1")]).num_new == 1


def test_tables_of_another_program_or_version_are_refused(postgres_place: Place, database: Any) -> None:
    table = f"nextitem_{postgres_place.namespace}_events"
    database.execute(f"CREATE TABLE {table} (id int)")
    with pytest.raises(UserError, match="not of nextitem"):
        postgres_place.open()
    database.execute(f"COMMENT ON TABLE {table} IS 'nextitem events, version 99'")
    with pytest.raises(UserError, match="format 99"):
        postgres_place.open()


def test_wrong_databases_and_accounts_are_told(postgres_server: PostgresServer, database: Any) -> None:
    database.execute("CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    base = f"127.0.0.1:{postgres_server.port}"
    with pytest.raises(UserError, match="encoding LATIN1"):
        open_store(f"postgresql://tester@{base}/latin")
    database.execute("CREATE ROLE reader LOGIN")
    with pytest.raises(UserError, match="may not create tables"):
        open_store(f"postgresql://reader:secret@{base}/postgres", namespace="reader")
    with open_store(f"postgresql://nobody:secret@{base}/postgres") as store, pytest.raises(StoreUnavailable) as error:
        store.check()
    assert "nobody" in str(error.value)
    assert "secret" not in str(error.value)


def test_a_table_that_disappears_is_created_again(postgres_place: Place, database: Any) -> None:
    store = postgres_place.open()
    store.append([event("e1")])
    database.execute(f"DROP TABLE nextitem_{postgres_place.namespace}_events")
    with pytest.raises(StoreUnavailable, match="does not exist"):
        store.append([event("e2")])
    assert store.append([event("e2")]).num_new == 1


def test_several_stores_create_one_table(postgres_place: Place) -> None:
    errors: list[BaseException] = []

    def create() -> None:
        try:
            postgres_place.open()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=create) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_setting_of_the_server_that_loses_events_is_reported(
    postgres_place: Place, postgres_server: PostgresServer, database: Any
) -> None:
    store = postgres_place.open()
    assert store.check() == ()
    try:
        database.execute("ALTER SYSTEM SET full_page_writes = off")
        database.execute("ALTER SYSTEM SET synchronous_commit = off")
        database.execute("SELECT pg_reload_conf()")
        time.sleep(0.3)
        fresh = postgres_place.open()
        assert ["full_page_writes" in note for note in fresh.check()] == [True]
        assert isinstance(fresh, PostgresStore)
        with fresh._connection() as connection:
            assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)
    finally:
        database.execute("ALTER SYSTEM RESET ALL")
        database.execute("SELECT pg_reload_conf()")
