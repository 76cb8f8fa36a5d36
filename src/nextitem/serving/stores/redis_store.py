"""Event store on a Redis server: in memory, as durable as the server is configured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from nextitem.core.errors import UserError
from nextitem.serving.stores import redis_scripts as scripts
from nextitem.serving.stores.store import (
    SCHEMA_VERSION,
    EventPage,
    EventStore,
    StoreConfig,
    StoredEvent,
    StoreUnavailable,
    check_version,
)

SWEEP_STEP = 2_000  # positions that one call looks at, so that other clients wait for milliseconds only


class RedisStore(EventStore):
    """Event store on a Redis server, with all keys of a namespace below "nextitem:NAMESPACE:".

    Every method is one script or a loop over one: a round trip each, and atomic. redis_scripts.py has the layout.

    Args:
        url: URL as redis-py reads it.
        config: Settings of the store.
        namespace: Checked name of the tenant.
        place: URL without secrets, for messages.

    """

    def __init__(self, url: str, config: StoreConfig, namespace: str, *, place: str) -> None:
        super().__init__(config, place)
        self._prefix = f"nextitem:{namespace}:"
        try:
            self._client: Any = redis.Redis.from_url(
                url,
                decode_responses=True,
                socket_timeout=config.timeout,
                socket_connect_timeout=min(config.timeout, 1.0),
                retry=Retry(NoBackoff(), 0),  # a caller that waits for several attempts keeps a request waiting
            )
        except ValueError:  # its message may contain the password
            raise UserError(f"store {place}: not a valid URL; write redis://HOST:PORT/DB") from None
        self._is_open = True
        self._is_prepared = False
        self._is_rewrite_due = False  # the file of the server still has the bytes of removed events

    def _check(self) -> tuple[str, ...]:
        with self._translated():
            self._client.ping()
            self._prepare()
            if self._is_rewrite_due:
                self._rewrite_file()
            return self._durability_notes()

    def _close(self) -> None:
        self._is_open = False
        self._client.close()

    def _append(self, events: Sequence[StoredEvent]) -> int:
        keys = self._keys("version", "last", "log", "events", "ids", "longer", *(f"user:{e.user_id}" for e in events))
        arguments: list[str | int] = [SCHEMA_VERSION, self.config.max_events_per_user]
        for event in events:
            text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
            arguments += [event.event_id, event.user_id, event.timestamp_ms, text]
        num_new: int = self._call(scripts.APPEND, keys, *arguments)
        return num_new

    def _histories(self, user_ids: Sequence[str], limit: int) -> list[list[StoredEvent]]:
        keys = self._keys("events", *(f"user:{user}" for user in user_ids))
        histories = self._call(scripts.HISTORIES, keys, limit)
        return [[StoredEvent._make(event) for event in reversed(json.loads(text))] for text in histories]

    def _events_after(self, cursor: int, limit: int) -> EventPage:
        last, text = self._call(scripts.EVENTS_AFTER, self._keys("log", "events"), cursor, limit)
        return EventPage([StoredEvent._make(event) for event in json.loads(text)], int(last))

    def _delete_user(self, user_id: str) -> int:
        keys = self._keys("log", "events", "ids", "longer", f"user:{user_id}")
        num_events, has_more = self._call(scripts.DELETE_HISTORY, keys, user_id)
        if has_more:
            num_events += self._sweep("user", user_id)
            with self._translated():
                self._client.srem(self._prefix + "longer", user_id)
        if num_events:
            with self._translated():
                self._rewrite_file()
        return int(num_events)

    def _prune(self, before_ms: int) -> int:
        return self._sweep("before", before_ms)

    def _sweep(self, rule: str, value: str | int) -> int:
        """Remove the events of a user, or before a time, from the whole log, part by part; return their number."""
        cursor, total = "0", 0
        keys = self._keys("log", "events", "ids")
        while cursor:
            arguments = (cursor, SWEEP_STEP, self._prefix + "user:", rule, value)
            cursor, num_removed = self._call(scripts.SWEEP, keys, *arguments)
            total += num_removed
        return total

    def _rewrite_file(self) -> None:
        """Let the server rewrite its append-only file without the commands that stored removed events."""
        try:
            if self._client.config_get("appendonly").get("appendonly") == "yes":
                self._client.bgrewriteaof()
            self._is_rewrite_due = False
        except redis.ResponseError:  # one is running that began before the removal, or the account may not ask for it
            self._is_rewrite_due = True

    def _durability_notes(self) -> tuple[str, ...]:
        try:
            settings = self._client.config_get("append*") | self._client.config_get("maxmemory*")
        except redis.ResponseError:  # a provider's server, or an account with few rights
            return (f"{self.place}: the server does not show its settings; see that it has appendfsync always",)
        notes = []
        if settings.get("appendonly") != "yes":
            notes.append("events are lost if the server stops; set appendonly yes and appendfsync always")
        elif settings.get("appendfsync") != "always":
            notes.append("the last second of events is lost if the server's machine fails; set appendfsync always")
        if settings.get("maxmemory", "0") != "0" and settings.get("maxmemory-policy") != "noeviction":
            notes.append("the server may remove events when its memory is full; set maxmemory-policy noeviction")
        return tuple(f"{self.place}: {note}" for note in notes)

    def _prepare(self) -> None:
        """Store the version of the layout; refuse keys that another program or a newer version wrote."""
        try:
            version = self._client.eval(scripts.PREPARE, 2, *self._keys("version", "last"), SCHEMA_VERSION)
        except redis.ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            version = 0
        if version == 0:
            raise UserError(
                f"{self.place}: keys {self._prefix}* are not of nextitem; use another database number or namespace"
            )
        check_version(version, self.place)
        self._is_prepared = True

    def _call(self, script: str, keys: Sequence[str], *arguments: str | int) -> Any:
        """Run a script; the server caches its text."""
        with self._translated():
            if not self._is_prepared:
                self._prepare()
            return self._client.register_script(script)(keys=keys, args=arguments)

    def _keys(self, *names: str) -> list[str]:
        return [self._prefix + name for name in names]

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn errors of the driver into `StoreUnavailable`."""
        if not self._is_open:
            raise StoreUnavailable(f"{self.place}: the store is closed")
        try:
            yield
        except (redis.RedisError, OSError) as error:
            # The next call checks the layout again: the server that comes back may be another one.
            self._is_prepared = False
            raise StoreUnavailable(f"{self.place}: {error}") from error
