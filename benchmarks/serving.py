"""How many requests a second does a server answer, how fast, and what does sharing batches gain?

    python benchmarks/serving.py RUN [--seconds 10] [--loads 1 4 16 64] [--rates 50 100 200] [--k 10] [--data FOLDER]

Starts `nextitem serve` of the run, and as a peer a plain FastAPI endpoint around the same model (one request, one call
of `run.recommend`), each in a process of its own. Requests are histories of the run's own users, or their ids (`--what
users`). Closed loop: for each number of `--loads`, so many clients ask one after another. Open loop: for each of
`--rates`, requests arrive at random times at this rate, whatever the server does, and latency counts from the time at
which a request should have been sent. Prints requests per second, p50 and p99 in milliseconds, and the shares of
fallbacks and of refused requests. Server and clients share the machine. `--data` names the data set of a run that was
trained from data in memory, or whose folder has moved.

    python benchmarks/serving.py runs/sasrec-100k --items 100000 --loads 1 64 --rates 300

serves sasrec over so many items: if the folder does not exist, a log is generated beside it (runs/sasrec-100k-data),
and sasrec is trained on it for one epoch.

    python benchmarks/serving.py RUN --overload 3 --overload-seconds 600

measures the capacity (64 clients, closed loop), then sends requests at the capacity, then at 3 times the capacity for
so many seconds. It prints p99 of the accepted requests of both, the share of refused requests, the memory of the server
every tenth of the time, and the number of errors: answers other than 200 and 429, and connections that broke.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import Results, parser

PLAIN = """
import sys, torch, uvicorn, nextitem as ni
from fastapi import FastAPI
torch.set_num_threads(int(sys.argv[2]))
run, app = ni.load_run(sys.argv[1]), FastAPI()
if len(sys.argv) > 3:
    run.use_data(sys.argv[3])
run.recommend(history=[str(run.model.catalog.ids.external[0])])
run.dataset
@app.post("/v1/recommend")
def recommend(body: dict):
    answer = run.recommend(history=body.get("history"), user=body.get("user_id"), k=body["k"])
    return {"fallback": answer.fallback, **answer.to_json()}
server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
socket = server.config.bind_socket()
socket.listen()
print("http://%s:%s" % socket.getsockname()[:2], file=sys.stderr, flush=True)
server.run(sockets=[socket])
"""


class Client:
    """One connection that is kept open, with just enough HTTP for this purpose."""

    def __init__(self, address: str) -> None:
        self.host, port = address.removeprefix("http://").split(":")
        self.port = int(port)
        self.reader: asyncio.StreamReader | None = None

    async def ask(self, body: bytes) -> tuple[int, bytes]:
        """Return status and body of the answer to POST /v1/recommend."""
        is_used = self.reader is not None
        if self.reader is None:
            self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        head = f"POST /v1/recommend HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n"
        self.writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        try:
            header = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            if not is_used:
                raise
            self.reader = None  # the server closes connections that were idle for five seconds
            return await self.ask(body)
        length = re.search(rb"content-length: (\d+)", header, re.IGNORECASE)
        assert length is not None
        return int(header.split(b" ", 2)[1]), await self.reader.readexactly(int(length[1]))


class Outcomes:
    """Counts and latencies of the answers to one load; the answers themselves are not stored."""

    def __init__(self) -> None:
        self.latencies: list[float] = []  # from the planned time of a request
        self.sent_latencies: list[float] = []  # from the time at which this process got to sending it
        self.num_answers = self.num_refused = self.num_fallbacks = self.num_errors = 0

    async def ask(self, client: Client, body: bytes, planned: float) -> None:
        """Send a request whose latency counts from the planned time, and count its answer."""
        self.num_answers += 1
        sent = time.perf_counter()
        try:
            status, answer = await client.ask(body)
        except (OSError, EOFError):
            client.reader = None
            self.num_errors += 1
            return
        if status == 200:
            self.latencies.append(time.perf_counter() - planned)
            self.sent_latencies.append(time.perf_counter() - sent)
            self.num_fallbacks += b'"fallback":true' in answer
        elif status == 429:
            self.num_refused += 1
        else:
            self.num_errors += 1

    def row(self, seconds: float) -> dict[str, object]:
        """Return the figures of a load of this length in seconds."""
        milliseconds = np.array(self.latencies or [np.nan]) * 1000
        sent_milliseconds = np.array(self.sent_latencies or [np.nan]) * 1000
        return {
            "requests_per_second": round(len(self.latencies) / seconds, 1),
            "p50_ms": round(float(np.percentile(milliseconds, 50)), 1),
            "p99_ms": round(float(np.percentile(milliseconds, 99)), 1),
            "p99_from_sending_ms": round(float(np.percentile(sent_milliseconds, 99)), 1),
            "fallback_share": round(self.num_fallbacks / max(1, self.num_answers), 4),
            "refused_share": round(self.num_refused / max(1, self.num_answers), 4),
            "errors": self.num_errors,
        }


async def closed_loop(address: str, bodies: list[bytes], clients: int, seconds: float) -> dict[str, object]:
    """Let so many clients ask one request after another, and return the figures."""
    outcomes = Outcomes()
    end = time.perf_counter() + seconds

    async def one(seed: int) -> None:
        client, generator = Client(address), random.Random(seed)
        while (start := time.perf_counter()) < end:
            await outcomes.ask(client, generator.choice(bodies), start)

    await asyncio.gather(*(one(seed) for seed in range(clients)))
    return outcomes.row(seconds)


async def open_loop(address: str, bodies: list[bytes], rate: float, seconds: float) -> dict[str, object]:
    """Send requests at random times at this rate, and return the figures; latency counts from the planned time."""
    generator, idle, outcomes = random.Random(0), [Client(address) for _ in range(64)], Outcomes()

    async def one(planned: float, body: bytes) -> None:
        client = idle.pop() if idle else Client(address)
        await outcomes.ask(client, body, planned)
        idle.append(client)

    planned = start = time.perf_counter()
    tasks: set[asyncio.Task[None]] = set()
    while planned < start + seconds:
        planned += generator.expovariate(rate)
        await asyncio.sleep(max(0.0, planned - time.perf_counter()))
        task = asyncio.create_task(one(planned, generator.choice(bodies)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return outcomes.row(seconds)


def memory_mib(process: int) -> float:
    """Return the memory of a process that is in use (resident set size), in MiB; Linux."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def overload(
    address: str, process: int, bodies: list[bytes], *, factor: float, seconds: float, capacity_seconds: float
) -> dict[str, object]:
    """Return the figures at the capacity of a server and at `factor` times the capacity."""
    saturated = await closed_loop(address, bodies, 64, capacity_seconds)
    capacity = float(str(saturated["requests_per_second"]))
    at_capacity = await open_loop(address, bodies, capacity, capacity_seconds)
    memory = [memory_mib(process)]

    async def watch() -> None:
        while True:
            await asyncio.sleep(seconds / 10)
            memory.append(memory_mib(process))

    # A sender that cannot keep up sends fewer requests and later ones; the ratio is about the server alone.
    watching = asyncio.create_task(watch())
    over = await open_loop(address, bodies, factor * capacity, seconds)
    watching.cancel()
    return {
        "capacity_per_second": capacity,
        "at_capacity": at_capacity,
        "factor": factor,
        "seconds": seconds,
        "overloaded": over,
        "p99_ratio": round(float(str(over["p99_from_sending_ms"])) / float(str(at_capacity["p99_from_sending_ms"])), 2),
        "memory_mib": [round(value, 1) for value in memory],
    }


def bodies_of(run_folder: str, what: str, k: int, *, data: str | None = None) -> list[bytes]:
    """Return requests for 2,000 users of a data set; None: that of the run."""
    import nextitem as ni

    run = ni.load_run(run_folder)
    dataset = (run if data is None else run.use_data(data)).dataset
    log, items = dataset.interactions, dataset.catalog.ids.external
    users = dataset.users.ids.external[:2000].to_list()
    bodies: list[dict[str, Any]] = []
    for number, user in enumerate(users):
        events = log.item_ids[log.offsets[number] : log.offsets[number + 1]][-50:]
        history = [str(items[int(item) - 1]) for item in events if item]
        bodies.append({"user_id": str(user), "k": k} if what == "users" else {"history": history, "k": k})
    return [json.dumps(body).encode() for body in bodies]


def start(command: list[str], folder: str) -> tuple[subprocess.Popen[str], str]:
    """Start a server and return its process and address."""
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if match := re.search(r"http://\S+", line):
            return process, match[0]
    raise SystemExit(f"{command[1:4]} did not start")


def serve_command(run: str, data: str | None = None) -> list[str]:
    """Return the command that serves a run at any free port, with the histories of a data set (None: its own)."""
    command = [sys.executable, "-m", "nextitem", "serve", run, "--port", "0", "--store", "sqlite:///events.db"]
    return command if data is None else [*command, "--data", data]


def large_run(folder: Path, num_items: int, *, num_users: int = 8000, length: int = 25) -> None:
    """Train sasrec for one epoch on a generated log in which every item occurs, a few of them much more often."""
    import polars as pl

    import nextitem as ni

    generator = np.random.default_rng(0)
    num_users = max(num_users, -(-num_items // length))
    weights = 1 / np.arange(1, num_items + 1) ** 0.7
    others = generator.choice(num_items, size=num_users * length - num_items, p=weights / weights.sum())
    items = generator.permutation(np.concatenate([np.arange(num_items), others]))
    data = folder.with_name(f"{folder.name}-data")
    data.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(num_users), length),
            "item_id": items + 1,
            "timestamp": 1_700_000_000 + np.tile(np.arange(length), num_users),
        }
    ).write_parquet(data / "interactions.parquet")
    settings = {
        "model.objective": {"kind": "sampled-softmax"},
        "training.max_epochs": 1,
        "training.validate_every": 1,
    }
    ni.train("sasrec", data, out=folder, settings=settings)


def measure_overload(arguments: argparse.Namespace, bodies: list[bytes], results: Results) -> None:
    run = str(Path(arguments.run).resolve())
    with tempfile.TemporaryDirectory() as folder:
        process, address = start(serve_command(run, arguments.data), folder)
        try:
            asyncio.run(closed_loop(address, bodies, 4, 2.0))  # warm
            row = asyncio.run(
                overload(
                    address,
                    process.pid,
                    bodies,
                    factor=arguments.overload,
                    seconds=arguments.overload_seconds,
                    capacity_seconds=arguments.seconds,
                )
            )
            is_alive = process.poll() is None
        finally:
            process.kill()
            process.wait()
    results.add_printed("overload", {"run": Path(run).name, "server_is_alive": is_alive, **row})


def measure(arguments: argparse.Namespace, bodies: list[bytes], results: Results) -> None:
    run = str(Path(arguments.run).resolve())
    plain_command = [sys.executable, "-c", PLAIN, run, str(arguments.threads)]
    servers = {
        "nextitem": serve_command(run, arguments.data),
        "plain endpoint": plain_command if arguments.data is None else [*plain_command, arguments.data],
    }
    best: dict[str, list[float]] = {name: [] for name in servers}
    for name, command in servers.items():
        with tempfile.TemporaryDirectory() as folder:
            process, address = start(command, folder)
            try:
                asyncio.run(closed_loop(address, bodies, 4, 2.0))  # warm
                for clients in arguments.loads:
                    row = asyncio.run(closed_loop(address, bodies, clients, arguments.seconds))
                    best[name].append(float(str(row["requests_per_second"])))
                    results.add_printed(f"{name}, {clients} clients", {"server": name, "clients": clients, **row})
                for rate in arguments.rates if name == "nextitem" else []:
                    row = asyncio.run(open_loop(address, bodies, rate, arguments.seconds))
                    results.add_printed(f"{name}, {rate:g} a second", {"server": name, "rate": rate, **row})
            finally:
                process.kill()
                process.wait()
    ours, plain = best["nextitem"], best["plain endpoint"]
    about = {"run": Path(arguments.run).name, "what": arguments.what, "threads": arguments.threads}
    ratios = {
        "saturated_over_one_by_one": round(max(ours) / ours[0], 2),
        "over_plain_endpoint": round(max(ours) / max(plain), 2),
        "median_over_plain": round(statistics.median(a / b for a, b in zip(ours, plain, strict=True)), 2),
    }
    results.add_printed("ratios", {**about, **ratios})


def main() -> None:
    options = parser(__doc__, k=10, threads=1)
    options.add_argument("run", help="folder of a run")
    options.add_argument("--seconds", type=float, default=10.0, help="length of each load")
    options.add_argument("--loads", type=int, nargs="+", default=[1, 4, 16, 64], help="numbers of clients")
    options.add_argument("--rates", type=float, nargs="*", default=[], help="requests a second that arrive")
    options.add_argument("--what", choices=["histories", "users"], default="histories")
    options.add_argument("--overload", type=float, metavar="FACTOR", help="send this many times the capacity instead")
    options.add_argument("--overload-seconds", type=float, default=600.0, help="length of the overload")
    options.add_argument("--data", help='folder of a data set, or "shop"; default: that of the run')
    options.add_argument("--items", type=int, help="train sasrec over so many items first, if RUN does not exist")
    arguments = options.parse_args()
    if arguments.items is not None and not Path(arguments.run).exists():
        large_run(Path(arguments.run).resolve(), arguments.items)
    if arguments.data is not None and Path(arguments.data).is_dir():
        arguments.data = str(Path(arguments.data).resolve())
    work = measure if arguments.overload is None else measure_overload
    bodies = bodies_of(arguments.run, arguments.what, arguments.k, data=arguments.data)
    work(arguments, bodies, Results(arguments))


if __name__ == "__main__":
    main()
