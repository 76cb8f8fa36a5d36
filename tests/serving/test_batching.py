"""The batcher: every request gets its own answer, batches form under load, the queue is bounded, closing drains."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from nextitem.serving.batching import Batcher, ClosedError, QueueFullError


class Gate:
    """An answer function that waits until it is opened, and records the batches."""

    def __init__(self) -> None:
        self.opened, self.entered = threading.Event(), threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, requests: Sequence[int]) -> list[int | Exception]:
        self.entered.set()
        assert self.opened.wait(10)
        self.batches.append(list(requests))
        return [ValueError(str(request)) if request < 0 else request * 2 for request in requests]


def make(gate: Gate, *, max_batch: int = 4, max_queue: int = 100) -> Batcher[int, int]:
    return Batcher(gate, max_batch=max_batch, max_queue=max_queue, name="test")


def fill(batcher: Batcher[int, int], gate: Gate, requests: Sequence[int]) -> list[Future[int]]:
    """Submit requests, the first of which is in the thread when the others come."""
    first = batcher.submit(requests[0])
    assert gate.entered.wait(10)
    return [first, *[batcher.submit(request) for request in requests[1:]]]


def test_waiting_requests_form_batches_in_order_of_arrival() -> None:
    gate = Gate()
    batcher = make(gate)
    futures = fill(batcher, gate, list(range(10)))
    gate.opened.set()
    assert [future.result(10) for future in futures] == [2 * n for n in range(10)]
    assert gate.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]
    assert batcher.close(10)


def test_an_error_concerns_its_own_request_only() -> None:
    gate = Gate()
    batcher = make(gate)
    futures = fill(batcher, gate, [1, 2, -3, 4])
    gate.opened.set()
    assert [futures[n].result(10) for n in (0, 1, 3)] == [2, 4, 8]
    with pytest.raises(ValueError, match="-3"):
        futures[2].result(10)


@pytest.mark.parametrize("answers", [[1], "error"])
def test_a_failing_batch_fails_its_requests_and_the_next_batch_is_answered(answers: object) -> None:
    def answer(requests: Sequence[int]) -> list[int | Exception]:
        if 1 in requests:
            if answers == "error":
                raise KeyError("planted")
            return []
        return list(requests)

    batcher = Batcher(answer, max_batch=1, max_queue=10, name="test")
    futures = [batcher.submit(request) for request in (0, 1, 2)]
    assert futures[0].result(10) == 0
    assert isinstance(futures[1].exception(10), KeyError if answers == "error" else RuntimeError)
    assert futures[2].result(10) == 2


def test_a_full_queue_refuses_and_a_cancelled_request_is_skipped() -> None:
    gate = Gate()
    batcher = make(gate, max_queue=3)
    futures = fill(batcher, gate, [0, 1, 2, 3])
    with pytest.raises(QueueFullError, match="3 requests wait"):
        batcher.submit(4)
    assert len(batcher) == 3
    assert futures[2].cancel()
    gate.opened.set()
    assert futures[3].result(10) == 6
    assert [request for batch in gate.batches for request in batch] == [0, 1, 3]


def test_closing_answers_what_waits_and_refuses_what_comes() -> None:
    gate = Gate()
    batcher = make(gate)
    futures = fill(batcher, gate, [0, 1, 2])
    assert not batcher.close(0.05)
    with pytest.raises(ClosedError):
        batcher.submit(3)
    gate.opened.set()
    assert batcher.close(10)
    assert [future.result(0) for future in futures] == [0, 2, 4]


def test_many_threads_get_their_own_answers() -> None:
    batcher: Batcher[int, int] = Batcher(
        lambda requests: [request + 1 for request in requests], max_batch=7, max_queue=10**6, name="test"
    )

    def ask(start: int) -> bool:
        return all(batcher.submit(n).result(10) == n + 1 for n in range(start, start + 200))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(0, 8000, 1000)))
    assert batcher.close(10)
