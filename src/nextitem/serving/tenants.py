"""Tenants of a server: each has its own events, users and logs of lists, and sees nothing of the others.

The models, their catalogues and the data sets that they were trained on are common to all tenants.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from nextitem.core.errors import UserError
from nextitem.serving.batching import Batcher
from nextitem.serving.impressions import ImpressionLog, ShownList
from nextitem.serving.requests import HistoryEvent
from nextitem.serving.stores import open_store
from nextitem.serving.stores.store import NAMESPACE, AppendOutcome, EventStore, StoredEvent, StoreUnavailable

log = logging.getLogger("nextitem.serving")
NAMED_TOKEN = re.compile(r"([a-z][a-z0-9_-]{0,39})=([^=].*)")


class Recorder:
    """Writer of a log of lists in a thread of its own."""

    def __init__(self, impressions: ImpressionLog, name: str) -> None:
        """Start the thread."""
        self.impressions = impressions
        self._batcher: Batcher[ShownList, None] = Batcher(
            self._record, max_batch=1_000, max_queue=100_000, name=f"impressions-{name}"
        )

    async def record(self, shown_list: ShownList) -> None:
        """Log a list; if the log is synced, wait until it is on disk.

        Raises StoreUnavailable if the log is synced, and cannot be written.
        """
        future = self._batcher.submit(shown_list)
        if self.impressions.is_synced:
            await asyncio.wrap_future(future)

    async def delete_user(self, user_id: str) -> None:
        """Remove all lists of a user, those that wait to be written included.

        Raises StoreUnavailable if the log cannot be written.
        """
        try:
            await asyncio.wrap_future(self._batcher.call(lambda: self.impressions.delete_user(user_id)))
        except OSError as error:
            raise StoreUnavailable(f"the log of impressions cannot be written: {error.strerror}") from None

    def close(self, timeout: float) -> None:
        """Write what waits, and close the log."""
        self._batcher.close(timeout)
        self.impressions.close()

    def _record(self, lists: Sequence[ShownList]) -> Sequence[Exception | None]:
        try:
            self.impressions.append(lists)
        except OSError as error:
            log.error("%d lists were not logged: %s", len(lists), error.strerror)
            return [StoreUnavailable(f"the log of impressions cannot be written: {error.strerror}")] * len(lists)
        return [None] * len(lists)


class Tenant:
    """One tenant: its events, and the logs of its lists.

    Attributes:
        namespace: name in the store.
        store: its events since the data sets.
        recorder: log of the lists that its users got, or None.
        shadow_recorder: log of the lists of shadow models, or None.

    """

    def __init__(
        self,
        namespace: str,
        store: EventStore,
        *,
        impressions: ImpressionLog | None = None,
        shadow_impressions: ImpressionLog | None = None,
    ) -> None:
        """Start the threads that write."""
        self.namespace, self.store = namespace, store
        self.recorder = None if impressions is None else Recorder(impressions, namespace)
        self.shadow_recorder = None if shadow_impressions is None else Recorder(shadow_impressions, namespace)
        self._writer: Batcher[list[StoredEvent], AppendOutcome] = Batcher(
            self._append, max_batch=100, max_queue=1_000, name=f"events-{namespace}"
        )
        self._in_progress: dict[str, set[asyncio.Future[object]]] = {}

    def track(self, user_id: str, task: asyncio.Future[object]) -> None:
        """Note that something about a user is in progress until the task is done; `delete_user` waits for it."""
        tasks = self._in_progress.setdefault(user_id, set())
        tasks.add(task)

        def end(_: asyncio.Future[object]) -> None:
            tasks.discard(task)
            if not tasks and self._in_progress.get(user_id) is tasks:
                del self._in_progress[user_id]

        task.add_done_callback(end)

    async def finished(self, user_id: str) -> None:
        """Wait until everything about a user that is in progress now is done."""
        tasks = set(self._in_progress.get(user_id, ()))
        if tasks:
            await asyncio.wait(tasks)

    def new_events(self, user_ids: Iterable[str], *, limit: int) -> dict[str, list[HistoryEvent]]:
        """Return the latest events of users, oldest first; none if the store cannot be reached."""
        users = set(user_ids)
        if not users:
            return {}
        try:
            stored = self.store.histories(users, limit=limit)
        except StoreUnavailable as error:
            log.warning("histories are read without the store: %s", error)
            return {}
        return {user: [_history_event(event) for event in events] for user, events in stored.items() if events}

    async def append(self, events: list[StoredEvent]) -> None:
        """Store events durably.

        Raises:
            UserError: an event is invalid.
            StoreUnavailable: nothing was acknowledged.
            QueueFullError: too many calls wait.

        """
        await asyncio.wrap_future(self._writer.submit(events))

    async def delete_user(self, user_id: str) -> int:
        """Remove a user from the logs and from the store, and return the number of events.

        Raises StoreUnavailable if the store cannot be reached; the logs are then clear of the user already.
        """
        for recorder in (self.recorder, self.shadow_recorder):
            if recorder is not None:
                await recorder.delete_user(user_id)
        return await asyncio.wrap_future(self._writer.call(lambda: self.store.delete_user(user_id)))

    def close(self, timeout: float) -> None:
        """Write what waits, and close logs and store."""
        self._writer.close(timeout)
        for recorder in (self.recorder, self.shadow_recorder):
            if recorder is not None:
                recorder.close(timeout)
        self.store.close()

    def _append(self, calls: Sequence[list[StoredEvent]]) -> Sequence[AppendOutcome | Exception]:
        """Store the events of several calls in one transaction; if one of them is invalid, each call in its own.

        The outcome of a shared transaction is returned for each of its calls.
        """
        try:
            return [self.store.append([event for events in calls for event in events])] * len(calls)
        except UserError as error:
            if len(calls) == 1:
                return [error]
        except StoreUnavailable as error:
            return [error] * len(calls)
        return [answer for events in calls for answer in self._append([events])]


def open_tenant(
    url: str, namespace: str, lists: Path | None, *, is_synced: bool, has_shadows: bool, is_default: bool
) -> Tenant:
    """Open the store and the logs of a tenant; those of all but the default one are in a folder of their own.

    Args:
        url: URL of the store.
        namespace: name in the store.
        lists: folder of the logs of lists; None: no log.
        is_synced: whether a list is on disk before it is returned.
        has_shadows: whether there are shadow models, whose lists are logged apart.
        is_default: whether it is the default tenant.

    """
    store = open_store(url, namespace=namespace)
    if lists is None:
        return Tenant(namespace, store)
    folder = lists if is_default else lists / "tenants" / namespace
    shadow_folder = folder / "shadow"  # an old log stays open, so that a user can be removed from it
    shadow_log = ImpressionLog(shadow_folder) if has_shadows or shadow_folder.is_dir() else None
    log_of_lists = ImpressionLog(folder, is_synced=is_synced)
    return Tenant(namespace, store, impressions=log_of_lists, shadow_impressions=shadow_log)


class Tokens:
    """Bearer tokens, and the tenant of each. Without any token, everybody is the default tenant."""

    def __init__(self, text: str, *, default: str) -> None:
        """Read tokens that are separated by commas: TOKEN, or TENANT=TOKEN.

        Args:
            text: the tokens.
            default: namespace of the tenant of a token without a name.

        Raises:
            UserError: two tenants have the same token or the same namespace, or a token has a space in it.

        """
        self.namespaces: dict[str, str] = {}  # by token
        names: dict[str, str] = {}
        for number, entry in enumerate((part.strip() for part in text.split(",") if part.strip()), start=1):
            match = NAMED_TOKEN.fullmatch(entry)
            name, token = (match[1], match[2]) if match else (default, entry)
            namespace = name.replace("-", "_")
            where = f"NEXTITEM_TOKENS: entry {number}"
            if re.search(r"\s", token) or not token.isascii():
                raise UserError(f"{where}: a token has no spaces and ASCII characters only")
            if not NAMESPACE.fullmatch(namespace):
                raise UserError(f"{where}: tenant {name!r}: use lower-case letters, digits and -, a letter first")
            if names.setdefault(namespace, name) != name:
                raise UserError(f"{where}: tenants {names[namespace]!r} and {name!r} have one namespace; rename one")
            if self.namespaces.setdefault(token, namespace) != namespace:
                raise UserError(f"{where}: another tenant has the same token; each needs its own")
        self.default = default

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.namespaces)

    def tenants(self) -> list[str]:
        """Return the namespaces, the default one first."""
        return list(dict.fromkeys([self.default, *self.namespaces.values()]))

    def namespace_of(self, authorization: str) -> str | None:
        """Return the namespace that a header Authorization gives access to, or None if it gives none.

        The header is compared with all tokens, so that the time tells nothing about them.
        """
        if not self.namespaces:
            return self.default
        scheme, _, token = authorization.partition(" ")
        namespace = None
        for each, name in self.namespaces.items():
            if hmac.compare_digest(token.encode("utf-8", "surrogatepass"), each.encode()):
                namespace = name
        return namespace if scheme.lower() == "bearer" else None


def _history_event(event: StoredEvent) -> HistoryEvent:
    return HistoryEvent(event.item_id, event.action, event.timestamp_ms)
