"""Batcher: collects single requests into batches, and answers each batch in one call, in a thread of its own.

A batch starts as soon as the thread is free, with all requests that wait then, up to a maximum. So a lone request does
not wait, and under load batches grow by themselves.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class QueueFullError(RuntimeError):
    """Too many requests wait already; the same request may succeed later."""


class ClosedError(RuntimeError):
    """The batcher accepts no more requests."""


class Batcher(Generic[Q, A]):
    """A queue of requests, and the thread that answers them in batches, in the order of their arrival."""

    def __init__(
        self, answer: Callable[[Sequence[Q]], Sequence[A | Exception]], *, max_batch: int, max_queue: int, name: str
    ) -> None:
        """Start the thread.

        Args:
            answer: returns an answer or an error for each request of a batch.
            max_batch: largest number of requests in a batch.
            max_queue: largest number of requests that wait.
            name: name of the thread.

        """
        self._answer = answer
        self._max_batch, self._max_queue = max_batch, max_queue
        self._queue: deque[tuple[Q, Future[A]]] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Return the number of requests that wait."""
        return len(self._queue)

    def submit(self, request: Q) -> Future[A]:
        """Return the future answer to a request. A cancelled future is skipped, if its batch has not started.

        Raises:
            QueueFullError: the largest number of requests waits already.
            ClosedError: the batcher was closed.

        """
        future: Future[A] = Future()
        with self._changed:
            if self._is_closing:
                raise ClosedError("the batcher is closed")
            if len(self._queue) >= self._max_queue:
                raise QueueFullError(f"{self._max_queue} requests wait already")
            self._queue.append((request, future))
            self._changed.notify()
        return future

    def close(self, timeout: float | None = None) -> bool:
        """Accept no more requests, answer those that wait, and return whether all were answered within the seconds."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._queue) or self._is_closing)
                if not self._queue:
                    return
                size = min(len(self._queue), self._max_batch)
                batch = [self._queue.popleft() for _ in range(size)]
            batch = [(request, future) for request, future in batch if future.set_running_or_notify_cancel()]
            if not batch:
                continue
            try:
                answers = list(self._answer([request for request, _ in batch]))
                if len(answers) != len(batch):
                    raise RuntimeError(f"{len(answers)} answers to {len(batch)} requests")
            except Exception as error:
                answers = [error] * len(batch)
            for (_, future), answer in zip(batch, answers, strict=True):
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
