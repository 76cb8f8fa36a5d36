"""Does a simulation of the queues predict throughput and latency of a server?

    python benchmarks/queueing.py RUN [--seconds 10] [--loads 1 4 16 64] [--shares 0.3 0.6 0.8] [--k 10]

The server is two stations. The event loop reads and answers requests one at a time; the model answers all requests that
wait, at most 64, in one batch. A batch of n requests takes `fixed + n * per_request` seconds, times a factor that is
sampled from the measured ones. The constants are measured first, none of them at a load that is predicted: the times of
batches by calls of the engine in this process, the seconds of the event loop by the processor time of its thread with
one client, and the rest of the latency of one client as a delay that occupies nobody.

Then `nextitem serve` is measured by benchmarks/serving.py (closed loop at each of `--loads`, open loop at each share of
the simulated capacity), and each figure is printed as predicted, measured and ratio. Server and clients share the
machine; a machine that others use too makes measured latencies longer.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import random
import statistics
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from measure import Results, Stopwatch, parser

MAX_BATCH = 64
SIZES = (1, 2, 4, 8, 16, 32, 64)
WARM_SECONDS = 0.1  # share of a simulated period that is not counted


@dataclass(frozen=True)
class Server:
    """Constants of a server, in seconds.

    Attributes:
        fixed: time of a batch, whatever its size.
        per_request: further time of a batch for each request.
        loop: time that the event loop needs for a request, half before and half after the model.
        delay: further time of a request, in which it occupies nobody.
        max_batch: largest number of requests in a batch.
        max_queue: largest number of requests that wait for the model; more are refused.
        factors: factors of the time of a batch, one of which is sampled for each.

    """

    fixed: float
    per_request: float
    loop: float
    delay: float = 0.0
    max_batch: int = MAX_BATCH
    max_queue: int = 512
    factors: Sequence[float] = (1.0,)

    @property
    def capacity(self) -> float:
        """Requests a second that the slower station can answer."""
        size = self.max_batch
        model = size / ((self.fixed + size * self.per_request) * statistics.fmean(self.factors))
        return min(model, 1 / self.loop) if self.loop else model


@dataclass
class Outcome:
    """What a simulation has counted.

    Attributes:
        latencies: seconds from the arrival of each answered request to its answer.
        refused: number of requests that found the queue full.
        seconds: length of the counted period.
        batches: sizes of the batches.

    """

    latencies: list[float] = field(default_factory=list)
    refused: int = 0
    seconds: float = 0.0
    batches: list[int] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Return requests per second, p50 and p99 in milliseconds, and the mean size of a batch."""
        milliseconds = 1000 * np.array(self.latencies or [np.nan])
        return {
            "requests_per_second": round(len(self.latencies) / self.seconds, 1),
            "p50_ms": round(float(np.percentile(milliseconds, 50)), 1),
            "p99_ms": round(float(np.percentile(milliseconds, 99)), 1),
            "batch": round(float(np.mean(self.batches or [0])), 1),
        }


class Simulation:
    """Discrete events of one server: requests go through loop, model and loop again."""

    def __init__(self, server: Server, seconds: float, seed: int) -> None:
        self.server, self.end = server, seconds
        self.random = random.Random(seed)
        self.outcome = Outcome(seconds=seconds * (1 - WARM_SECONDS))
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.now = 0.0
        self._loop_tasks: deque[Callable[[], None]] = deque()
        self._loop_is_busy = self._model_is_busy = False
        self._waiting: deque[tuple[float, Callable[[], None]]] = deque()

    def at(self, moment: float, action: Callable[[], None]) -> None:
        """Plan an action."""
        heapq.heappush(self._events, (moment, next(self._order), action))

    def run(self) -> Outcome:
        """Let all events happen until the end, and return what was counted."""
        while self._events and self._events[0][0] < self.end:
            self.now, _, action = heapq.heappop(self._events)
            action()
        return self.outcome

    def arrive(self, then: Callable[[], None]) -> None:
        """Let a request arrive; `then` is called when it is answered or refused."""
        arrival = self.now
        self._in_loop(lambda: self._enter(arrival, then))

    def _in_loop(self, action: Callable[[], None]) -> None:
        self._loop_tasks.append(action)
        if not self._loop_is_busy:
            self._next_in_loop()

    def _next_in_loop(self) -> None:
        self._loop_is_busy = bool(self._loop_tasks)
        if self._loop_is_busy:
            action = self._loop_tasks.popleft()

            def done() -> None:
                action()
                self._next_in_loop()

            self.at(self.now + self.server.loop / 2, done)

    def _enter(self, arrival: float, then: Callable[[], None]) -> None:
        if len(self._waiting) >= self.server.max_queue:
            self.outcome.refused += 1
            then()
            return
        self._waiting.append((arrival, then))
        if not self._model_is_busy:
            self._start_batch()

    def _start_batch(self) -> None:
        server, size = self.server, min(len(self._waiting), self.server.max_batch)
        self._model_is_busy = size > 0
        if not size:
            return
        batch = [self._waiting.popleft() for _ in range(size)]
        self.outcome.batches.append(size)
        time = (server.fixed + size * server.per_request) * self.random.choice(server.factors)

        def done() -> None:
            for arrival, then in batch:
                self._in_loop(lambda arrival=arrival, then=then: self._leave(arrival, then))  # type: ignore[misc]
            self._start_batch()

        self.at(self.now + time, done)

    def _leave(self, arrival: float, then: Callable[[], None]) -> None:
        def done() -> None:
            if arrival >= self.end * WARM_SECONDS:
                self.outcome.latencies.append(self.now - arrival)
            then()

        self.at(self.now + self.server.delay, done)


def closed(server: Server, clients: int, *, seconds: float = 20.0, seed: int = 0) -> Outcome:
    """Simulate clients that ask one request after another."""
    simulation = Simulation(server, seconds, seed)

    def ask() -> None:
        simulation.arrive(ask)

    for _ in range(clients):
        simulation.at(0.0, ask)
    return simulation.run()


def opened(server: Server, rate: float, *, seconds: float = 60.0, seed: int = 0) -> Outcome:
    """Simulate requests that arrive at random times at this rate, whatever the server does."""
    simulation = Simulation(server, seconds, seed)

    def arrive() -> None:
        simulation.arrive(lambda: None)
        simulation.at(simulation.now + simulation.random.expovariate(rate), arrive)

    simulation.at(0.0, arrive)
    return simulation.run()


def batch_constants(run_folder: str, bodies: Sequence[bytes], repeats: int) -> tuple[float, float, list[float]]:
    """Return fixed seconds and seconds per request of a batch, and the factors by which measured times differ."""
    import torch

    import nextitem as ni
    from nextitem.serving.engine import Engine
    from nextitem.serving.schemas import RecommendBody

    torch.set_num_threads(1)
    run = ni.load_run(run_folder)
    engine = Engine(run.model, run.dataset)
    requests = [RecommendBody.model_validate_json(body).to_request() for body in bodies[:512]]
    draw, times = random.Random(0), []
    for repeat in range(repeats + 2):
        for size in SIZES:
            batch = draw.sample(requests, size)
            with Stopwatch() as watch:
                engine.recommend(batch)
            if repeat >= 2:
                times.append((size, watch.seconds))
    medians = {size: statistics.median(t for n, t in times if n == size) for size in SIZES}
    # Relative errors count, so that a batch of one weighs as much as a batch of 64.
    rows = np.array([[1 / medians[size], size / medians[size]] for size in SIZES])
    fixed, per_request = np.linalg.lstsq(rows, np.ones(len(SIZES)), rcond=None)[0]
    fixed, per_request = max(0.0, float(fixed)), max(1e-6, float(per_request))
    return fixed, per_request, [seconds / (fixed + size * per_request) for size, seconds in times]


def loop_seconds(pid: int) -> float:
    """Return the processor time of a process's first thread, in which a server has its event loop."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


def measured(arguments: Any, bodies: list[bytes], results: Results) -> None:
    """Measure the constants and the server, and print each load as predicted, measured and ratio."""
    from serving import closed_loop, open_loop, start

    run = str(Path(arguments.run).resolve())
    fixed, per_request, factors = batch_constants(run, bodies, arguments.repeats)
    command = [sys.executable, "-m", "nextitem", "serve", run, "--port", "0", "--store", "sqlite:///events.db"]
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        process, address = start(command, folder)
        try:
            asyncio.run(closed_loop(address, bodies, 4, 2.0))  # warm
            before = loop_seconds(process.pid)
            one = asyncio.run(closed_loop(address, bodies, 1, arguments.seconds))
            num_requests = float(str(one["requests_per_second"])) * arguments.seconds
            loop = (loop_seconds(process.pid) - before) / num_requests
            mean = statistics.fmean(factors)
            latency = arguments.seconds / num_requests
            delay = max(0.0, latency - loop - (fixed + per_request) * mean)
            server = Server(fixed, per_request, loop, delay, factors=factors)
            constants = {
                "fixed_ms": fixed * 1000, "per_request_ms": per_request * 1000, "loop_ms": loop * 1000,
                "delay_ms": delay * 1000, "capacity": server.capacity,
            }  # fmt: skip
            results.add_printed("constants", {name: round(value, 3) for name, value in constants.items()})
            for clients in arguments.loads:
                actual = asyncio.run(closed_loop(address, bodies, clients, arguments.seconds))
                report(results, f"{clients} clients", closed(server, clients).figures(), actual)
            for share in arguments.shares:
                rate = share * server.capacity
                actual = asyncio.run(open_loop(address, bodies, rate, arguments.seconds))
                report(results, f"{share:g} of capacity", opened(server, rate).figures(), actual)
        finally:
            process.kill()
            process.wait()


def report(results: Results, name: str, predicted: dict[str, float], actual: dict[str, object]) -> None:
    row: dict[str, object] = {"load": name, "batch": predicted["batch"]}
    for figure in ("requests_per_second", "p50_ms", "p99_ms"):
        value = float(str(actual[figure]))
        row |= {
            figure: predicted[figure],
            f"{figure} measured": value,
            f"{figure} ratio": round(predicted[figure] / value, 2),
        }
    results.add_printed(name, row)


def main() -> None:
    options = parser(__doc__, k=10, repeats=15)
    options.add_argument("run", help="folder of a run")
    options.add_argument("--seconds", type=float, default=10.0, help="length of each load")
    options.add_argument("--loads", type=int, nargs="+", default=[1, 4, 16, 64], help="numbers of clients")
    options.add_argument("--shares", type=float, nargs="*", default=[0.3, 0.6, 0.8], help="shares of the capacity")
    arguments = options.parse_args()
    from serving import bodies_of

    measured(arguments, bodies_of(arguments.run, "histories", arguments.k), Results(arguments))


if __name__ == "__main__":
    main()
