"""A pool of connections that threads borrow and return."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Pool(Generic[T]):
    """Connections of one kind: as many as are in use at the same time, idle ones are used again.

    Args:
        connect: Open a connection.
        close: Close a connection.
        is_alive: Return whether an idle connection can still be used.

    """

    def __init__(
        self, connect: Callable[[], T], close: Callable[[T], None], is_alive: Callable[[T], bool] = lambda _: True
    ) -> None:
        self._connect, self._close, self._is_alive = connect, close, is_alive
        self._idle: list[T] = []
        self._generation = 0  # connections that were borrowed before `clear` are closed when they come back
        self._lock = threading.Lock()

    @contextmanager
    def connection(self) -> Iterator[T]:
        """Lend a connection to one thread; it is closed if the block raises an error."""
        connection, generation = self._take()
        try:
            yield connection
        except BaseException:
            self._close(connection)
            raise
        with self._lock:
            is_current = generation == self._generation
            if is_current:
                self._idle.append(connection)
        if not is_current:
            self._close(connection)

    def clear(self) -> None:
        """Close all idle connections now, and those in use when they are returned."""
        with self._lock:
            connections, self._idle = self._idle, []
            self._generation += 1
        for connection in connections:
            self._close(connection)

    def _take(self) -> tuple[T, int]:
        while True:
            with self._lock:
                generation = self._generation
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return self._connect(), generation
            if self._is_alive(connection):
                return connection, generation
            self._close(connection)
