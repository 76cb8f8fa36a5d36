"""kill -9 in the middle of writes: every acknowledged event is in the store, and batches are whole."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time

import pytest
from support.store_places import Place, all_events, event, ids
from support.store_servers import PostgresServer, RedisServer

from nextitem.serving.stores import StoreUnavailable

SIZE = 3


def kill_a_writer(place: Place, number: int) -> int:
    """Kill a process that appends batches at a random moment; return how many batches it had acknowledged."""
    process = place.start_process(f"p{number}", 10**6, SIZE)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(random.Random(number).uniform(0, 0.2))
    process.kill()
    output, _ = process.communicate()
    acknowledged = output.rpartition("\n")[0].split()  # the last line may be incomplete
    user = f"user-p{number}"
    with place.open(max_events_per_user=10**6) as store:
        stored = ids(store.histories([user], limit=10**6)[user])
        assert store.append([event(f"after-{number}")]).num_new == 1
    assert stored == [f"p{number}-{each}" for each in range(len(stored))]
    assert len(stored) >= len(acknowledged)
    assert len(stored) % SIZE == 0
    return len(acknowledged) // SIZE


def test_sqlite_keeps_what_a_killed_process_acknowledged(sqlite_place: Place) -> None:
    assert sum(kill_a_writer(sqlite_place, number) for number in range(3)) > 0


@pytest.mark.slow
def test_every_store_keeps_what_a_killed_process_acknowledged(shared_place: Place) -> None:
    assert sum(kill_a_writer(shared_place, number) for number in range(50)) > 50


def kill_a_server(server: RedisServer | PostgresServer, place: Place, number: int) -> int:
    """Kill the server under two writing threads and start it again; return how many events were acknowledged."""
    store = place.open()
    acknowledged: list[str] = []

    def write(thread: int) -> None:
        for each in range(10**6):
            name = f"s{number}-{thread}-{each}"
            try:
                store.append([event(name)])
            except StoreUnavailable:
                return
            acknowledged.append(name)

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(random.Random(number).uniform(0.02, 0.3))
    server.stop(signal.SIGKILL)
    for thread in threads:
        thread.join()
    server.start()
    assert set(acknowledged) <= set(ids(all_events(store)))
    assert store.append([event(f"after-{number}")]).num_new == 1  # the same store works again
    return len(acknowledged)


@pytest.mark.slow
def test_redis_keeps_what_it_acknowledged_before_it_was_killed(redis_place: Place) -> None:
    with RedisServer() as server:
        redis_place.url = server.url
        assert sum(kill_a_server(server, redis_place, number) for number in range(50)) > 50


@pytest.mark.slow
def test_postgres_keeps_what_it_acknowledged_before_it_was_killed(postgres_place: Place) -> None:
    with PostgresServer() as server:
        postgres_place.url = server.url
        assert sum(kill_a_server(server, postgres_place, number) for number in range(20)) > 20
