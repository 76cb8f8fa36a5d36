"""Stores of events behind one contract: SQLite, Redis and PostgreSQL, opened by URL."""

from nextitem.serving.stores.store import (
    AppendOutcome,
    EventPage,
    EventStore,
    StoreConfig,
    StoredEvent,
    StoreUnavailable,
)
from nextitem.serving.stores.urls import open_store

__all__ = [
    "AppendOutcome",
    "EventPage",
    "EventStore",
    "StoreConfig",
    "StoreUnavailable",
    "StoredEvent",
    "open_store",
]
