"""Batcher: a bounded queue before one thread that answers waiting requests together.

A batch starts as soon as the thread is free, with all requests that wait then, up to a maximum. So a lone request does
not wait, and under load batches grow by themselves. A request is accepted only if it can expect its answer in time.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")
T = TypeVar("T")
FORGETTING = 1.001  # by which the best time of a full batch grows with each batch, so that it follows what is usual
LEAST_WAIT = 0.3  # seconds within which an answer is never too late; a busy machine is late by less than that
BATCHES_AHEAD = 3  # number of full batches after which an answer is too late: the running one, a full queue, its own
BUSY_MOMENT = 0.5  # seconds that a request may have waited elsewhere, if it can join the next batch
log = logging.getLogger("nextitem.serving")


class QueueFullError(RuntimeError):
    """Too many requests wait already; the same request may succeed later.

    Attributes:
        retry_after: seconds after which it may be accepted.

    """

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ClosedError(RuntimeError):
    """The batcher accepts no more requests."""


class BatchTime:
    """Time of a batch by its size: the straight line through the latest batches, by least squares.

    Each batch weighs 0.95 of the one after it.
    """

    DECAY = 0.95

    def __init__(self) -> None:
        self._weight = self._size = self._seconds = self._size_size = self._size_seconds = 0.0

    def observe(self, size: int, seconds: float) -> None:
        """Add a batch of `size` requests that took `seconds`."""
        keep = self.DECAY
        self._weight = keep * self._weight + 1
        self._size = keep * self._size + size
        self._seconds = keep * self._seconds + seconds
        self._size_size = keep * self._size_size + size * size
        self._size_seconds = keep * self._size_seconds + size * seconds

    def expected(self, size: int) -> float:
        """Return the expected seconds of a batch of `size` requests; 0 as long as no batch was observed."""
        if not self._weight:
            return 0.0
        mean_size, mean_seconds = self._size / self._weight, self._seconds / self._weight
        variance = self._size_size / self._weight - mean_size**2
        if variance < 0.01 * mean_size**2:  # the sizes are nearly equal, and tell nothing about the slope
            return mean_seconds * max(1.0, size / mean_size)
        slope = (self._size_seconds / self._weight - mean_size * mean_seconds) / variance
        slope = min(max(slope, 0.0), mean_seconds / mean_size)  # neither it nor the time of no request is negative
        return mean_seconds + slope * (size - mean_size)


@dataclass(frozen=True)
class Admission:
    """How many requests may wait.

    Attributes:
        max_queue: largest number of requests that wait, whatever they take.
        max_wait: largest number of seconds after which a request can expect its answer; None: the best time of
            three full batches, and at least 0.3 seconds.
        deadline: seconds after which nobody waits for an answer any more.

    """

    max_queue: int
    max_wait: float | None = None
    deadline: float = math.inf


class Batcher(Generic[Q, A]):
    """A queue of requests, and the thread that answers them in batches, in the order of their arrival."""

    def __init__(
        self,
        answer: Callable[[Sequence[Q]], Sequence[A | Exception]],
        *,
        max_batch: int,
        max_queue: int,
        name: str,
        admission: Admission | None = None,
        niceness: int = 0,
    ) -> None:
        """Start the thread.

        Args:
            answer: returns an answer or an error for each request of a batch.
            max_batch: largest number of requests in a batch.
            max_queue: largest number of requests that wait.
            name: name of the thread.
            admission: further limits of what may wait; None: only `max_queue`.
            niceness: by how much the thread yields to others, 0 to 19 (Linux; elsewhere ignored).

        """
        self._answer, self._niceness = answer, niceness
        self._max_batch = max_batch
        self._admission = admission or Admission(max_queue, max_wait=math.inf)
        self._queue: deque[tuple[Q, Future[A]] | _Call] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._time, self._best = BatchTime(), math.inf  # the latter: time of a full batch when nothing disturbs
        self._running, self._started = 0, 0.0  # number of requests of the batch that is computed, and its start
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Return the number of requests that wait."""
        return len(self._queue)

    def expected_seconds(self, num_inside: int = 0) -> float:
        """Return the seconds after which a request that comes now can expect its answer.

        Args:
            num_inside: number of requests that come before it, if more are on their way than those in the queue and in
                the running batch.

        """
        running = self._running
        rest = self._time.expected(running) - (time.perf_counter() - self._started) if running else 0.0
        full, partial = divmod(max(len(self._queue), num_inside - running), self._max_batch)
        whole = full * self._time.expected(self._max_batch) if full else 0.0
        return max(rest, 0.0) + whole + self._time.expected(partial + 1)

    def refusal(self, num_inside: int = 0, *, waited: float = 0.0) -> QueueFullError | None:
        """Return why a request that comes now is not accepted, or None if it is.

        Args:
            num_inside: as in `expected_seconds`.
            waited: seconds that it has waited elsewhere. A request that has waited little and can join the next batch
                is accepted if it can expect its answer before the deadline; if there is no other, in any case.

        """
        if not (self._queue or self._running or num_inside):
            return None
        waiting = max(len(self._queue), num_inside - self._running)
        seconds = waited + (self.expected_seconds(num_inside) if waiting > 0 else 0.0)
        has_place = waiting < self._max_batch and waited <= BUSY_MOMENT and self._admission.max_wait is None
        limit = self._admission.deadline if has_place else self._max_wait()
        if waiting < self._admission.max_queue and seconds <= limit:
            return None
        return QueueFullError(f"{waiting} requests wait already; try again in a moment", seconds)

    def _max_wait(self) -> float:
        """Return the seconds within which a request must be able to expect its answer."""
        max_wait = self._admission.max_wait
        if max_wait is None:
            max_wait = max(BATCHES_AHEAD * min(self._best, self._time.expected(self._max_batch)), LEAST_WAIT)
        return min(max_wait, self._admission.deadline)

    def submit(self, request: Q) -> Future[A]:
        """Return the future answer to a request. A cancelled future is skipped, if its batch has not started.

        Raises:
            QueueFullError: too many requests wait already.
            ClosedError: the batcher was closed.

        """
        future: Future[A] = Future()
        with self._changed:
            if self._is_closing:
                raise ClosedError("the batcher is closed")
            refusal = self.refusal()
            if refusal is not None:
                raise refusal
            self._queue.append((request, future))
            self._changed.notify()
        return future

    def submit_together(self, requests: Sequence[Q]) -> list[Future[A]]:
        """Return the future answers to requests that come at the same moment and are all accepted.

        Raises ClosedError if the batcher was closed.
        """
        entries: list[tuple[Q, Future[A]]] = [(request, Future()) for request in requests]
        with self._changed:
            if self._is_closing:
                raise ClosedError("the batcher is closed")
            self._queue.extend(entries)
            self._changed.notify()
        return [future for _, future in entries]

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Call a function in the thread, after all requests that were submitted before, and return its future result.

        Raises ClosedError if the batcher was closed.
        """
        call = _Call(function, Future())
        with self._changed:
            if self._is_closing:
                raise ClosedError("the batcher is closed")
            self._queue.append(call)
            self._changed.notify()
        return call.future

    def measure_anew(self) -> None:
        """Forget the times of batches, since what answers them is another one now."""
        self._time, self._best = BatchTime(), math.inf

    def close(self, timeout: float | None = None) -> bool:
        """Accept no more requests, answer those that wait, and return whether all were answered within the seconds."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        yield_to_others(self._niceness)
        while True:
            with self._changed:
                self._running = 0
                self._changed.wait_for(lambda: bool(self._queue) or self._is_closing)
                if not self._queue:
                    return
                call, batch = self._next()
                self._running, self._started = len(batch), time.perf_counter()
            if call is not None:
                call.run()
            elif batch:
                self._answer_all(batch)

    def _next(self) -> tuple[_Call | None, list[tuple[Q, Future[A]]]]:
        """Remove a call, or the requests of the next batch, from the queue; cancelled requests are dropped."""
        batch: list[tuple[Q, Future[A]]] = []
        while self._queue and len(batch) < self._max_batch:
            entry = self._queue[0]
            if isinstance(entry, _Call):
                if batch:
                    break
                self._queue.popleft()
                return entry, []
            self._queue.popleft()
            if entry[1].set_running_or_notify_cancel():
                batch.append(entry)
        return None, batch

    def _answer_all(self, batch: list[tuple[Q, Future[A]]]) -> None:
        try:
            answers = list(self._answer([request for request, _ in batch]))
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(answers)} answers to {len(batch)} requests")
        except Exception as error:
            answers = [error] * len(batch)
        seconds = time.perf_counter() - self._started
        self._time.observe(len(batch), seconds)
        if 2 * len(batch) >= self._max_batch:  # a smaller one tells little about a full one
            self._best = min(FORGETTING * self._best, seconds * self._max_batch / len(batch))
        for (_, future), answer in zip(batch, answers, strict=True):
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)


@dataclass(frozen=True)
class _Call:
    """A function to call in the thread of a batcher."""

    function: Callable[[], Any]
    future: Future[Any]

    def run(self) -> None:
        """Call the function and set its result."""
        if self.future.set_running_or_notify_cancel():
            try:
                self.future.set_result(self.function())
            except Exception as error:
                self.future.set_exception(error)


def yield_to_others(niceness: int) -> None:
    """Let the calling thread, and those that it starts, have less processor time than others (Linux)."""
    if niceness and hasattr(os, "setpriority") and hasattr(threading, "get_native_id"):
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
        except OSError as error:
            log.info("a thread has the same priority as others: %s", error.strerror)
