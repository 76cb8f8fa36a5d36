"""What an event store costs: appending, reading histories and pages, removing a user, and the bytes of an event.

    python benchmarks/event_stores.py sqlite:///events.db redis://127.0.0.1:6379/0 [--events 100000] [--users 2000]

Fills each store, which must be empty, and then times appending 1 and 100 events, reading the histories of 32 users with
up to 50 events each, reading a page of 1,000 events, and removing a user. Prints one JSON line for each store, with
medians in milliseconds. One thread; the servers run elsewhere and are configured as they are.
"""

from __future__ import annotations

import random
import uuid
from pathlib import Path

from measure import Results, parser, timed_median

from nextitem.serving.stores import StoredEvent, open_store

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


def num_bytes(url: str) -> int:
    """Return the size of the store, indexes included."""
    if url.startswith("sqlite"):
        return Path(url.removeprefix("sqlite:///")).stat().st_size  # without the log, which is 4 MB at most
    if url.startswith("redis"):
        import redis

        return int(redis.Redis.from_url(url).info("memory")["used_memory"])
    import psycopg

    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT pg_total_relation_size('nextitem_default_events')").fetchone()
    return int(row[0]) if row else 0


def figures_of(url: str, num_events: int, num_users: int) -> dict[str, object]:
    """Fill a store and return its figures."""
    generator = random.Random(0)
    with open_store(url) as store:
        before = num_bytes(url)
        for _ in range(num_events // 1000):
            store.append(events_of(generator, 1000, num_users))
        size = (num_bytes(url) - before) / num_events
        users = [f"u{number:07d}" for number in range(num_users)]
        removed = iter(users)
        calls = {
            "append_1_ms": lambda: store.append(events_of(generator, 1, num_users)),
            "append_100_ms": lambda: store.append(events_of(generator, 100, num_users)),
            "histories_ms": lambda: store.histories(generator.sample(users, 32), limit=50),
            "page_ms": lambda: store.events_after(generator.randrange(num_events // 2), limit=1000),
            "remove_ms": lambda: store.delete_user(next(removed)),
        }
        repeats = {"remove_ms": 5}
        figures: dict[str, object] = {
            name: round(1000 * timed_median(call, repeats=repeats.get(name, REPEATS)), 2)
            for name, call in calls.items()
        }
    return {"store": url.partition(":")[0], **figures, "bytes_per_event": round(size)}


def main() -> None:
    options = parser(__doc__, events=100_000, users=2_000)
    options.add_argument("urls", nargs="+", help="empty stores")
    arguments = options.parse_args()
    results = Results(arguments)
    for url in arguments.urls:
        row = figures_of(url, arguments.events, arguments.users)
        results.add_printed(str(row["store"]), row)


if __name__ == "__main__":
    main()
