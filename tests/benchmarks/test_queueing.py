"""The simulation of a server's queues has the figures that queueing theory gives for the cases that it can solve."""

from __future__ import annotations

import random
import statistics
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from queueing import Server, closed, opened


def test_a_lone_client_waits_for_nobody() -> None:
    outcome = closed(Server(fixed=0.004, per_request=0.001, loop=0.002, delay=0.003), 1)
    assert outcome.latencies == pytest.approx([0.010] * len(outcome.latencies))
    assert outcome.figures()["requests_per_second"] == pytest.approx(100, rel=0.01)


def test_many_clients_reach_the_capacity_in_full_batches() -> None:
    server = Server(fixed=0.010, per_request=0.001, loop=0.0, max_batch=8)
    outcome = closed(server, 64)
    assert server.capacity == pytest.approx(8 / 0.018)
    assert outcome.figures()["requests_per_second"] == pytest.approx(server.capacity, rel=0.02)
    assert set(outcome.batches[10:]) == {8}
    assert statistics.fmean(outcome.latencies) == pytest.approx(64 / server.capacity, rel=0.02)  # Little's law


def test_the_event_loop_bounds_the_throughput_of_a_fast_model() -> None:
    server = Server(fixed=0.0001, per_request=0.0001, loop=0.002)
    assert server.capacity == 500
    assert closed(server, 32).figures()["requests_per_second"] == pytest.approx(500, rel=0.02)


def test_single_service_has_the_waits_of_m_d_1_and_m_m_1() -> None:
    load, time = 0.7, 0.01
    constant = Server(fixed=0.0, per_request=time, loop=0.0, max_batch=1)
    waits = opened(constant, load / time, seconds=600).latencies
    assert statistics.fmean(waits) == pytest.approx(time + time * load / (2 * (1 - load)), rel=0.08)
    draw = random.Random(1)
    random_times = tuple(draw.expovariate(1) for _ in range(20_000))
    exponential = Server(fixed=0.0, per_request=time, loop=0.0, max_batch=1, factors=random_times)
    waits = opened(exponential, load / time, seconds=900).latencies
    assert statistics.fmean(waits) == pytest.approx(time / (1 - load), rel=0.15)


def test_batches_hold_a_load_that_single_service_cannot() -> None:
    rate = 150.0  # ten milliseconds a request alone: 100 a second
    server = Server(fixed=0.009, per_request=0.001, loop=0.0)
    assert opened(server, rate).figures()["p99_ms"] < 40
    alone = opened(Server(fixed=0.009, per_request=0.001, loop=0.0, max_batch=1, max_queue=50), rate)
    assert alone.refused > 0.2 * rate * 60
    assert alone.figures()["requests_per_second"] == pytest.approx(100, rel=0.02)
