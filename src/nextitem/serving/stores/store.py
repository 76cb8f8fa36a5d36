"""The contract of an event store: what was shown to users and what they did, kept durably and read by user."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

from pydantic import Field

from nextitem.core.config import Config
from nextitem.core.errors import UserError

MAX_TEXT = 512  # characters of an id: PostgreSQL indexes at most 2,704 bytes of a row
MAX_TIME = 2**53 - 1  # milliseconds: Redis sorts by a double
SCHEMA_VERSION = 1
NAMESPACE = re.compile(r"[a-z][a-z0-9_]{0,39}")


class StoreUnavailable(RuntimeError):  # noqa: N818 - a state that passes
    """The store cannot be reached or cannot work now; the same call may succeed later."""


class StoredEvent(NamedTuple):
    """One event of a user: ids as the client sent them, the time in milliseconds since 1970 (UTC).

    `event_id` identifies the event within a namespace: of several events with one id, the first is stored.
    `request_id` names the recommendation that led to the event. (A named tuple: a batch of requests reads thousands of
    them, and a frozen dataclass takes six times as long to make.)
    """

    event_id: str
    user_id: str
    item_id: str
    action: str | None
    timestamp_ms: int
    request_id: str | None


class AppendOutcome(NamedTuple):
    """Number of events that were stored, and of events whose id had been stored before."""

    num_new: int
    num_duplicates: int


class EventPage(NamedTuple):
    """Events in order of arrival, and the cursor from which the next page is read."""

    events: list[StoredEvent]
    cursor: int


class StoreConfig(Config):
    """Settings of an event store."""

    max_events_per_user: int = Field(1000, ge=1)
    """Largest number of events that a history is read with. Redis removes older ones from its index of histories."""
    timeout: float = Field(2.0, gt=0, le=600)
    """Seconds until a store that does not answer, or that another writer has locked, counts as unavailable."""


class EventStore(ABC):
    """Events of the users of one namespace. All methods may be called from several threads.

    Every method raises `StoreUnavailable` if the store cannot be reached, and works again once it can be. It raises
    `UserError` if what can be reached is no event store, or one of a newer version. A subclass implements the methods
    with an underscore, which receive checked arguments.

    Args:
        config: Settings of the store.
        place: URL of the store without a password, for messages.

    """

    def __init__(self, config: StoreConfig, place: str) -> None:
        self.config = config
        self.place = place

    def append(self, events: Iterable[StoredEvent]) -> AppendOutcome:
        """Store events durably, all or none: they are committed and synced to disk before the method returns.

        Events may be older than stored ones. An event whose id is stored already is ignored, so a call may be repeated
        if its answer was lost.

        Raises:
            UserError: An id is empty, too long or no Unicode text, or a time is out of range.
            StoreUnavailable: Nothing was acknowledged. The events may still be stored.

        """
        checked = checked_events(events)
        num_new = self._append(checked) if checked else 0
        return AppendOutcome(num_new, len(checked) - num_new)

    def histories(self, user_ids: Iterable[str], *, limit: int) -> dict[str, list[StoredEvent]]:
        """Return the latest events of each user, oldest first; of equal times, the first to arrive comes first.

        All users are read at once, in time that depends on `limit` and not on the number of their events.

        Args:
            user_ids: Users; one without events gets an empty list.
            limit: Largest number of events of a user; at most `max_events_per_user` are returned.

        """
        if limit < 1:
            raise ValueError(f"limit is {limit}: a history has at least one event")
        users = list(dict.fromkeys(user_ids))
        stored = [user for user in users if is_storable(user)]  # no other user can have events
        limit = min(limit, self.config.max_events_per_user)
        histories = dict(zip(stored, self._histories(stored, limit), strict=True)) if stored else {}
        return {user: histories.get(user, []) for user in users}

    def events_after(self, cursor: int = 0, *, limit: int) -> EventPage:
        """Return events of all users in order of arrival, and the cursor for the events after them.

        Reading page by page until a page is empty returns each event once. It never skips one, whatever is
        appended meanwhile: an event that becomes visible later has a later position.

        Args:
            cursor: Cursor of the page before, 0 for the first page.
            limit: Largest number of events of the page.

        """
        if limit < 1 or cursor < 0:
            raise ValueError(f"cursor {cursor}, limit {limit}: a cursor is at least 0, a limit at least 1")
        return self._events_after(cursor, limit)

    def delete_user(self, user_id: str) -> int:
        """Remove all traces of a user, the ids of the user's events included, and return the number of events.

        The bytes are gone from the files too, as far as the store controls them: docs/serving/stores.md. If the
        method was interrupted, calling it again completes the removal.
        """
        return self._delete_user(user_id) if is_storable(user_id) else 0

    def prune(self, before_ms: int) -> int:
        """Remove all events before a time, their ids included, and return their number.

        Args:
            before_ms: Milliseconds since 1970; events at this time and later stay.

        """
        return self._prune(max(-MAX_TIME, min(before_ms, MAX_TIME + 1)))

    def check(self) -> tuple[str, ...]:
        """Ask the store for an answer, and return a sentence for each of its settings that limits durability.

        Raises:
            StoreUnavailable: It does not answer within `timeout`.

        """
        return self._check()

    def close(self) -> None:
        """Close all connections; later calls raise `StoreUnavailable`."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _check(self) -> tuple[str, ...]:
        """Ask the store for an answer and return the limits of its durability."""

    @abstractmethod
    def _close(self) -> None:
        """Close all connections; may be called again."""

    @abstractmethod
    def _append(self, events: Sequence[StoredEvent]) -> int:
        """Store at least one event and return the number of new ones."""

    @abstractmethod
    def _histories(self, user_ids: Sequence[str], limit: int) -> list[list[StoredEvent]]:
        """Return the histories of different users, in their order."""

    @abstractmethod
    def _events_after(self, cursor: int, limit: int) -> EventPage:
        """Return the events whose position is after the cursor."""

    @abstractmethod
    def _delete_user(self, user_id: str) -> int:
        """Remove a user and return the number of the user's events."""

    @abstractmethod
    def _prune(self, before_ms: int) -> int:
        """Remove events before a time and return their number."""


def is_storable(text: str) -> bool:
    """Return whether all stores can keep a text: 1 to 512 characters of Unicode, none of them NUL."""
    if not 0 < len(text) <= MAX_TEXT or "\0" in text:
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def checked_events(events: Iterable[StoredEvent]) -> list[StoredEvent]:
    """Return the events as a list.

    Raises:
        UserError: A store could not keep one of them; the message has its place in the list and the field.

    """
    checked = list(events)
    for number, event in enumerate(checked):
        texts = {"event_id": event.event_id, "user_id": event.user_id, "item_id": event.item_id}
        texts |= {name: text for name in ("action", "request_id") if (text := getattr(event, name)) is not None}
        for name, text in texts.items():
            if not is_storable(text):
                raise UserError(f"event {number}: {name} must have 1 to {MAX_TEXT} characters, none of them NUL")
        if not -MAX_TIME <= event.timestamp_ms <= MAX_TIME:
            raise UserError(f"event {number}: timestamp {event.timestamp_ms} is out of range (milliseconds since 1970)")
    return checked


def check_version(version: int, place: str) -> None:
    """Raise a `UserError` if a store was written by a newer version of the package."""
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{place}: the store has format {version}, and this version of nextitem reads formats up to "
            f"{SCHEMA_VERSION}; upgrade nextitem or open another store"
        )
