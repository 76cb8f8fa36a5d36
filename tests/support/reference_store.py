"""An event store as a plain list: what every other store is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from nextitem.serving.stores import EventPage, EventStore, StoreConfig, StoredEvent


class ReferenceStore(EventStore):
    """Events with their positions in a list."""

    def __init__(self, config: StoreConfig) -> None:
        super().__init__(config, "reference")
        self.rows: list[tuple[int, StoredEvent]] = []
        self.last = 0

    def _check(self) -> tuple[str, ...]:
        return ()

    def _close(self) -> None:
        self.rows = []

    def _append(self, events: Sequence[StoredEvent]) -> int:
        before = len(self.rows)
        for event in events:
            if event.event_id not in {other.event_id for _, other in self.rows}:
                self.last += 1
                self.rows.append((self.last, event))
        return len(self.rows) - before

    def _histories(self, user_ids: Sequence[str], limit: int) -> list[list[StoredEvent]]:
        in_order = sorted(self.rows, key=lambda row: (row[1].timestamp_ms, row[0]))
        return [[event for _, event in in_order if event.user_id == user][-limit:] for user in user_ids]

    def _events_after(self, cursor: int, limit: int) -> EventPage:
        rows = [row for row in self.rows if row[0] > cursor][:limit]
        return EventPage([event for _, event in rows], rows[-1][0] if rows else cursor)

    def _delete_user(self, user_id: str) -> int:
        return self._keep([row for row in self.rows if row[1].user_id != user_id])

    def _prune(self, before_ms: int) -> int:
        return self._keep([row for row in self.rows if row[1].timestamp_ms >= before_ms])

    def _keep(self, rows: list[tuple[int, StoredEvent]]) -> int:
        num_removed = len(self.rows) - len(rows)
        self.rows = rows
        return num_removed
