"""The batcher: every request gets its own answer, batches form under load, the queue is bounded, closing drains."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter, sleep

import pytest

from nextitem.serving.batching import Admission, Batcher, BatchTime, ClosedError, QueueFullError


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


def test_the_time_of_a_batch_is_the_line_through_the_latest_ones() -> None:
    time = BatchTime()
    assert time.expected(8) == 0.0
    time.observe(1, 0.011)
    assert time.expected(1) == pytest.approx(0.011)
    assert time.expected(10) == pytest.approx(0.11)  # one size tells nothing about the slope: as if one by one
    for size in (8, 64, 1, 16):
        time.observe(size, 0.010 + 0.001 * size)
    assert time.expected(32) == pytest.approx(0.042)
    assert time.expected(1) == pytest.approx(0.011)
    for size in (1, 64) * 100:  # a new version is twice as slow
        time.observe(size, 0.020 + 0.002 * size)
    assert time.expected(32) == pytest.approx(0.084, rel=1e-3)


def test_the_time_of_a_batch_is_never_negative() -> None:
    time = BatchTime()
    for size, seconds in ((10, 0.1), (20, 0.05), (30, 0.6)):
        time.observe(size, seconds)
    assert time.expected(1) >= 0.0


def test_requests_are_refused_that_cannot_expect_their_answer_in_time() -> None:
    gate = Gate()
    limits = Admission(max_queue=100, max_wait=0.2)
    batcher: Batcher[int, int] = Batcher(gate, max_batch=4, max_queue=100, name="test", admission=limits)
    for size in (1, 4):
        batcher._time.observe(size, 0.05 + 0.01 * size)  # a full batch takes 90 ms
    fill(batcher, gate, [0])
    assert batcher.expected_seconds() <= 0.06 + 0.06  # the rest of the running batch, and one of its own
    for number in range(1, 5):
        batcher.submit(number)  # with the running batch at most 0.06 + 0.09
    batcher._started = perf_counter()
    with pytest.raises(QueueFullError, match="4 requests wait already") as refused:
        batcher.submit(5)  # the fifth needs another batch after a full one: 0.06 + 0.09 + 0.06
    assert refused.value.retry_after == pytest.approx(0.21, abs=0.03)
    gate.opened.set()
    assert batcher.close(10)


def test_by_default_a_request_waits_for_three_full_batches() -> None:
    gate = Gate()
    limits = Admission(max_queue=100)
    batcher: Batcher[int, int] = Batcher(gate, max_batch=4, max_queue=100, name="test", admission=limits)
    batcher._time.observe(1, 3.0)
    batcher._time.observe(4, 9.0)
    assert batcher.submit_together([0, 1, 2, 3])
    assert gate.entered.wait(10)
    for number in range(8):  # the running batch, and two that wait
        batcher._started = perf_counter()
        batcher.submit(number)
    batcher._started = perf_counter()
    assert batcher.refusal() is not None
    gate.opened.set()
    assert batcher.close(10)


def test_a_few_requests_are_accepted_if_they_do_not_miss_the_deadline() -> None:
    gate = Gate()
    limits = Admission(max_queue=100, deadline=2.0)
    batcher: Batcher[int, int] = Batcher(gate, max_batch=64, max_queue=100, name="test", admission=limits)
    batcher._time.observe(1, 0.4)  # somebody explains lists; a full batch has never been seen
    fill(batcher, gate, [0])
    for number in range(4):
        batcher._started = perf_counter()
        batcher.submit(number)  # the last of them can expect its answer after 0.4 + 4 * 0.4
    batcher._started = perf_counter()
    assert batcher.refusal() is not None  # 0.4 + 5 * 0.4
    assert batcher.refusal(waited=0.3) is not None
    gate.opened.set()
    assert batcher.close(10)
    gate = Gate()
    batcher = Batcher(gate, max_batch=64, max_queue=100, name="test", admission=limits)
    assert batcher.refusal(waited=0.6) is None  # an idle server never refuses, however slow the machine is
    fill(batcher, gate, [0])
    assert batcher.refusal(waited=0.4) is None  # a busy moment
    assert batcher.refusal(waited=0.6) is not None
    assert batcher.refusal(60, waited=0.4) is None  # there is a place in the next batch
    assert batcher.refusal(70) is None  # no time is known yet
    assert batcher.refusal(70, waited=0.4) is not None
    gate.opened.set()
    assert batcher.close(10)


def test_a_call_runs_after_the_requests_before_it_and_before_those_after_it() -> None:
    gate = Gate()
    batcher = make(gate)
    futures = fill(batcher, gate, [0, 1, 2])
    call = batcher.call(lambda: [list(batch) for batch in gate.batches])
    failing = batcher.call(lambda: 1 / 0)
    last = batcher.submit(3)
    gate.opened.set()
    assert call.result(10) == [[0], [1, 2]]
    assert isinstance(failing.exception(10), ZeroDivisionError)
    assert [future.result(10) for future in [*futures, last]] == [0, 2, 4, 6]
    assert batcher.close(10)
    with pytest.raises(ClosedError):
        batcher.call(list)


def test_the_bound_follows_the_best_time_of_a_full_batch() -> None:
    seconds = iter([0.02, 0.3, 0.3, 0.3])

    def answer(requests: Sequence[int]) -> list[int | Exception]:
        sleep(next(seconds))
        return list(requests)

    batcher: Batcher[int, int] = Batcher(answer, max_batch=4, max_queue=100, name="test", admission=Admission(100))
    for _ in range(4):
        assert [future.result(10) for future in batcher.submit_together([1, 2, 3, 4])] == [1, 2, 3, 4]
    assert batcher.expected_seconds() > 0.15  # an overload makes the batches slower
    assert batcher._max_wait() <= 0.3  # and not the bound larger
    batcher.measure_anew()
    assert batcher.expected_seconds() == 0.0
    assert batcher.close(10)
