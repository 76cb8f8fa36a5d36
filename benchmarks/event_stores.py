"""Measure event stores: `python benchmarks/event_stores.py URL [URL ...] [--events 100000] [--users 2000]`.

Prints medians in milliseconds of appending 1 and 100 events, of reading the histories of 32 users with 50 events each,
of reading a page of 1,000 events and of removing a user; and the bytes of an event. Use an empty store.
"""

from __future__ import annotations

import argparse
import random
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from statistics import median

from nextitem.serving.stores import EventStore, StoredEvent, open_store

REPEATS = 50


def events_of(generator: random.Random, num_events: int, num_users: int) -> list[StoredEvent]:
    """Return events as a shop sends them: ids of 36 characters, users and items of 8, times in random order."""
    return [
        StoredEvent(
            str(uuid.UUID(int=generator.getrandbits(128))),
            f"u{generator.randrange(num_users):07d}",
            f"i{generator.randrange(10**6):07d}",
            "clicked",
            1_732_000_000_000 + generator.randrange(10**9),
            str(uuid.UUID(int=generator.getrandbits(128))),
        )
        for _ in range(num_events)
    ]


def milliseconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return median(times)


def num_bytes(store: EventStore, url: str) -> int:
    """Return the size of the store, indexes included."""
    if url.startswith("sqlite"):
        return Path(url.removeprefix("sqlite:///")).stat().st_size  # without the log, which is 4 MB at most
    if url.startswith("redis"):
        import redis

        return int(redis.Redis.from_url(url).info("memory")["used_memory"])  # type: ignore[index]
    import psycopg

    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT pg_total_relation_size('nextitem_default_events')").fetchone()
    return int(row[0]) if row else 0


def main() -> None:
    """Measure each store and print one line for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("urls", nargs="+")
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=2_000)
    arguments = parser.parse_args()
    print(f"{'store':12} append 1  append 100  histories  page 1000  remove a user  bytes an event")
    for url in arguments.urls:
        generator = random.Random(0)
        with open_store(url) as store:
            before = num_bytes(store, url)
            for _ in range(arguments.events // 1000):
                store.append(events_of(generator, 1000, arguments.users))
            size = (num_bytes(store, url) - before) / arguments.events
            users = [[f"u{generator.randrange(arguments.users):07d}" for _ in range(32)] for _ in range(REPEATS)]
            ones = [events_of(generator, 1, arguments.users) for _ in range(REPEATS)]
            hundreds = [events_of(generator, 100, arguments.users) for _ in range(REPEATS)]
            removed = iter(range(5))
            figures = (
                milliseconds(lambda: store.append(ones.pop())),
                milliseconds(lambda: store.append(hundreds.pop())),
                milliseconds(lambda: store.histories(users.pop(), limit=50)),
                milliseconds(lambda: store.events_after(generator.randrange(arguments.events // 2), limit=1000)),
                milliseconds(lambda: store.delete_user(f"u{next(removed):07d}"), repeats=5),
            )
        texts = "  ".join(f"{figure:9.2f}" for figure in figures)
        print(f"{url.partition(':')[0]:12} {texts}  {size:9.0f}", flush=True)


if __name__ == "__main__":
    main()
