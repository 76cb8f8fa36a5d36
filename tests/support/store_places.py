"""Places of event stores for tests, events, and processes that append to a store."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

from nextitem.serving.stores import EventStore, StoreConfig, StoredEvent, open_store
from support import append_events

NUMBERS = count()


class Place:
    """Where a test opens stores: a URL, and a namespace that no other test uses."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind, self.url = kind, url
        self.namespace = f"test_{next(NUMBERS)}"
        self.stores: list[EventStore] = []

    def open(self, namespace: str | None = None, **settings: float) -> EventStore:
        store = open_store(self.url, StoreConfig.model_validate(settings), namespace=namespace or self.namespace)
        self.stores.append(store)
        return store

    def start_process(self, prefix: str, num_batches: int, size: int = 1) -> subprocess.Popen[str]:
        """Start a process that appends events of the user user-PREFIX, and wait until it begins."""
        arguments = [self.url, self.namespace, prefix, str(num_batches), str(size)]
        process = subprocess.Popen(
            [sys.executable, str(Path(append_events.__file__)), *arguments], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        return process


def event(
    event_id: str, user_id: str = "ada", timestamp_ms: int = 0, item_id: str = "tent", action: str | None = "clicked"
) -> StoredEvent:
    return StoredEvent(event_id, user_id, item_id, action, timestamp_ms, f"request-of-{event_id}")


def ids(events: list[StoredEvent]) -> list[str]:
    return [each.event_id for each in events]


def all_events(store: EventStore, limit: int = 1000) -> list[StoredEvent]:
    """Read all events of a store, page by page."""
    return follow(store, limit, is_over=lambda: True)


def follow(store: EventStore, limit: int, is_over: Callable[[], bool]) -> list[StoredEvent]:
    """Read pages of events until one is empty that was read after the writers had ended."""
    events: list[StoredEvent] = []
    cursor = 0
    while True:
        was_over = is_over()
        page, cursor = store.events_after(cursor, limit=limit)
        events += page
        if was_over and not page:
            return events


CALLS: list[Callable[[EventStore], object]] = [
    lambda store: store.append([event("e2")]),
    lambda store: store.histories(["ada"], limit=1),
    lambda store: store.events_after(0, limit=1),
    lambda store: store.delete_user("bob"),
    lambda store: store.prune(-5),
    lambda store: store.check(),
]
