"""Does an updated model beat a frozen one in live traffic, if tastes drift and items arrive?

    python benchmarks/live_traffic.py --minutes 10 [--model item-graph] [--customers 3000] [--days 20]

Trains the model on the simulated shop (or takes --run), and starts `nextitem serve` with two copies of the run, of
which one is updated from the events of the store. Simulated customers visit it, half of them each model: many days of
the shop in so many minutes, in which interests, tastes and popularity drift and items arrive. Prints the shares of
lists with a click and a purchase by model with intervals and the verdict on the difference, from the log alone
(`nextitem report --live --pool-versions`), of all lists and of those after the first update, beside the true shares
that the simulation knows; and what each update did. --keep FOLDER keeps all files.

    python benchmarks/live_traffic.py --explore [--worlds 12] [--target item-graph] [--temperature 1]

asks instead whether off-policy estimates are right. In each of several small worlds (120 items), customers see lists
that a server samples from item-cf, and `nextitem report --live --target RUN` estimates the clicks per list of another
model, sampled likewise. The truth is the expected number of clicks, over the same visits, of lists that are sampled
from what the target recommends at that moment. Prints for each estimator in how many worlds its interval contains the
truth, how often it has a warning, and how many lists count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
import polars as pl
from measure import Results, parser

from nextitem.simulation.world import Answer, Visit, World, WorldConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nextitem.data.shop.shop import Shop

FROZEN, UPDATED = "frozen", "updated"
TARGET = "target"
NUM_SAMPLES = 200  # lists of the target for each visit, whose clicks are averaged
START_SECONDS = 300.0  # in which a server must have begun to listen
COMMAND = (sys.executable, "-m", "nextitem")


@contextmanager
def server(folder: Path, *options: str) -> Iterator[str]:
    """Serve both copies of a run in a folder, and yield the address; what the server prints goes to server.log."""
    with (folder / "server.log").open("w+") as log:
        command = [*COMMAND, "serve", FROZEN, UPDATED, "--port", "0", "--store", "sqlite:///events.db", *options]
        process = subprocess.Popen(command, cwd=folder, stderr=log, stdout=log)
        try:
            end = time.monotonic() + START_SECONDS
            while not (
                lines := [line for line in (folder / "server.log").read_text().splitlines() if " at http" in line]
            ):
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit("the server did not start: " + (folder / "server.log").read_text())
                time.sleep(0.2)
            yield next(word for word in lines[0].split() if word.startswith("http://")).rstrip("/")
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def copies_of(arguments: argparse.Namespace, folder: Path) -> None:
    """Put two copies of the run into a folder; train it, if none is given."""
    run = arguments.run
    if run is None:
        run = folder / "run"
        subprocess.run([*COMMAND, "train", arguments.model, "--data", "shop", "--out", str(run)], check=True)
    for name in (FROZEN, UPDATED):
        shutil.copytree(run, folder / name)


def reported(folder: Path, *, since_ms: int | None = None) -> dict[str, Any]:
    """Return what the log tells of both models: shares of lists with an outcome, and the verdict on the difference."""
    from nextitem.evaluation.live import live_report
    from nextitem.serving.impressions import read_impressions
    from nextitem.serving.stored_events import read_events

    lists = read_impressions(folder / "nextitem-impressions")
    if since_ms is not None:
        lists = lists.filter(pl.col("timestamp") >= since_ms)
    events = read_events(f"sqlite:///{folder / 'events.db'}")
    report, _ = live_report(lists, events, window_ms=0, pools_versions=True)
    result: dict[str, Any] = {}
    for policy in report.policies:
        result[policy.model] = {"lists": policy.lists, "users": policy.users}
        for name, rate in policy.list_rates.items():
            result[policy.model][name] = [round(value, 4) for value in (rate.value, rate.low, rate.high)]
    for pair in report.differences:
        sign = 1 if pair.first == UPDATED else -1
        bounds = sorted(sign * value for value in (pair.difference.low, pair.difference.high))
        result[f"{pair.outcome}_gain"] = [round(value, 4) for value in (sign * pair.difference.value, *bounds)]
        result[f"{pair.outcome}_gain_is_real"] = pair.is_real
    return result


def true_shares(folder: Path, request_ids: pl.Series | None = None) -> dict[str, Any]:
    """Return the true share of lists with a click and with a purchase by model, from what the simulation knows."""
    rows = pl.read_parquet(folder / "traffic" / "shown.parquet")
    if request_ids is not None:
        rows = rows.filter(pl.col("request_id").is_in(request_ids.implode()))
    no_outcome = [(1 - pl.col(f"{name}_probability")).product().alias(name) for name in ("click", "purchase")]
    lists = rows.group_by("model", "request_id").agg(no_outcome)
    shares = lists.group_by("model").agg(pl.col("click", "purchase").mean()).sort("model")
    return {
        model: {"click": round(1 - click, 4), "purchase": round(1 - bought, 4)}
        for model, click, bought in shares.iter_rows()
    }


def measure(arguments: argparse.Namespace, folder: Path, results: Results) -> None:
    """Play the traffic, and add the rows of figures."""
    copies_of(arguments, folder)
    arrivals = folder / "arrivals"
    arrivals.mkdir()
    updates = ("--update-every", arguments.update_every, "--update", UPDATED, "--update-items", str(arrivals))
    with server(folder, *updates) as address:
        started = time.monotonic()
        command = [
            *COMMAND, "simulate", address, "--customers", str(arguments.customers), "--days", str(arguments.days),
            "--seed", str(arguments.seed), "--minutes", str(arguments.minutes), "--items", str(arrivals),
            "--drift", str(arguments.drift), "--new-items", str(arguments.new_items),
            "--browsing", str(arguments.browsing), "--out", str(folder / "traffic"),
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        minutes = (time.monotonic() - started) / 60
    truth = json.loads((folder / "traffic" / "truth.json").read_text())
    about = {name: getattr(arguments, name) for name in ("model", "seed", "customers", "days", "drift", "new_items")}
    counts = {name: truth[name] for name in ("visits", "events", "finds")}
    results.add_printed("traffic", {**about, "minutes": round(minutes, 1), **counts})
    cards = [json.loads(line) for line in read_lines(folder / UPDATED / "updates.jsonl")]
    for card in cards:
        names = ("version", "time", "decision", "events", "new_items", "former", "new", "interval", "seconds")
        results.add_printed("update", {name: card[name] for name in names if name in card})
    results.add_printed("all lists", {"log": reported(folder), "true": true_shares(folder)})
    if not any(card["decision"] == "promoted" for card in cards):
        return
    lists = pl.concat([pl.read_parquet(file) for file in sorted((folder / "nextitem-impressions").glob("*.parquet"))])
    first_version = lists.filter(pl.col("policy").str.starts_with(f"{UPDATED} ")).sort("timestamp")["policy"][0]
    is_later = pl.col("policy").str.starts_with(f"{UPDATED} ") & (
        pl.col("policy").str.extract(r" ([0-9a-f]{8,})") != first_version.split()[1]
    )
    since = lists.filter(is_later)["timestamp"].min()
    assert isinstance(since, int), "a version that was promoted was served"
    later = lists.filter(pl.col("timestamp") >= since)["impression_id"].unique()
    figures = {"log": reported(folder, since_ms=since), "true": true_shares(folder, later)}
    results.add_printed("after the first update", figures)


def read_lines(file: Path) -> list[str]:
    """Return the lines of a file; none if it is missing."""
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


class ObservedWorld(World):
    """Customers of whom it is known how many clicks the lists of another policy would get.

    Attributes:
        heads: best items of the target for each user who asks now.
        expected: expected clicks of a list of the target, for each visit.

    """

    def __init__(self, shop: Shop, config: WorldConfig, *, temperature: float) -> None:
        super().__init__(shop, config)
        self.temperature = temperature
        self.heads: dict[str, list[str]] = {}
        self.expected: list[float] = []

    def answer(self, visit: Visit, item_ids: Sequence[str]) -> Answer:
        """Answer as a customer does, and note what the target would have got at this visit."""
        from nextitem.serving.exploration import log_weights

        customer, looks = self.customers[visit.customer], np.array(self.config.examination)
        head = self.heads.pop(customer.user_id)
        tastes, _ = self.tastes(customer, visit.time, head)
        noise = np.random.default_rng([visit.customer, visit.number]).gumbel(size=(NUM_SAMPLES, len(head)))
        order = np.argsort(-(log_weights(len(head), self.temperature) + noise), axis=1)[:, : len(looks)]
        self.expected.append(float((tastes[order] * looks[: order.shape[1]]).sum(1).mean()))
        return super().answer(visit, item_ids)


class Observer(httpx2.AsyncBaseTransport):
    """Transport to an application that asks the target for its best items before each list is made."""

    def __init__(self, app: Any, world: ObservedWorld) -> None:
        self.inner = httpx2.ASGITransport(app=app)
        self.world = world

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Pass a request on; one for a list comes after a preview of the target's."""
        from nextitem.serving.exploration import head_size

        if request.url.path == "/v1/recommend":
            body = json.loads(request.content)
            preview = {**body, "k": head_size(body["k"]), "model": TARGET, "explore": 0, "preview": True}
            ahead = httpx2.Request("POST", request.url, json=preview)
            response = await self.inner.handle_async_request(ahead)
            head = json.loads(await response.aread())
            self.world.heads[body["user_id"]] = [str(item["item_id"]) for item in head["items"]]
        return await self.inner.handle_async_request(request)


def explored(folder: Path, seed: int, arguments: argparse.Namespace) -> tuple[float, int, dict[str, Any]]:
    """Play one small world, and return the true clicks per list of the target, the number of lists, and the report."""
    import nextitem as ni
    from nextitem.data.shop.shop import generate_shop
    from nextitem.serving.app import make_app
    from nextitem.serving.config import ServiceConfig
    from nextitem.serving.impressions import ImpressionLog
    from nextitem.serving.service import Service
    from nextitem.serving.stores import open_store
    from nextitem.simulation.play import play

    shop = generate_shop(seed, num_items=120, num_users=400)
    shop.write(folder / "shop")
    names = {"logging": "item-cf", TARGET: arguments.target}
    runs = {name: ni.train(model, folder / "shop", out=folder / name, progress=False) for name, model in names.items()}
    store = f"sqlite:///{folder / 'events.db'}"
    service = Service(
        runs,
        open_store(store),
        ServiceConfig(explore=arguments.temperature, deadline_seconds=60),
        impressions=ImpressionLog(folder / "log"),
        weights={"logging": 1.0},
    )
    config = WorldConfig(customers=arguments.customers, days=arguments.days, seed=seed, examination=(1.0, 0.7, 0.5))
    world = ObservedWorld(shop, config, temperature=arguments.temperature)

    async def run() -> None:
        transport = Observer(make_app(service), world)
        async with httpx2.AsyncClient(transport=transport, base_url="http://server", timeout=120) as client:
            await play(world, client, connections=8)

    asyncio.run(run())
    service.close()
    command = [
        *COMMAND, "report", "--live", "log", "--events", store, "--attribution", "0", "--target", TARGET,
        "--temperature", str(arguments.temperature), "--json", "-",
    ]  # fmt: skip
    printed = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(np.mean(world.expected)), len(world.expected), json.loads(printed)["off_policy"]


def measure_exploration(arguments: argparse.Namespace, results: Results) -> None:
    """Add a row for each world, and one for each estimator with the number of worlds that its interval covers."""
    counts: dict[str, dict[str, list[float]]] = {}
    for seed in range(arguments.seed, arguments.seed + arguments.worlds):
        with tempfile.TemporaryDirectory() as folder:
            truth, num_lists, report = explored(Path(folder), seed, arguments)
        row: dict[str, Any] = {"seed": seed, "lists": num_lists, "true": round(truth, 4)}
        row |= {"shown": round(report["logged"]["value"], 4), "compared": report["lists"]}
        for entry in report["estimates"]:
            reward, name = entry["reward"], entry["estimator"]
            values = counts.setdefault(name, {"covers": [], "covers_unwarned": [], "size": [], "error": []})
            covers = reward["low"] <= truth <= reward["high"]
            values["covers"].append(covers)
            values["size"].append(entry["effective_size"])
            values["error"].append(reward["value"] / truth - 1)
            if not entry["warnings"]:
                values["covers_unwarned"].append(covers)
            row[name] = [round(reward[part], 4) for part in ("value", "low", "high")]
        results.add_printed("world", row)
    for name, values in counts.items():
        unwarned = values["covers_unwarned"]
        figures = {
            "estimator": name,
            "covers": f"{sum(values['covers'])} of {len(values['covers'])}",
            "covers_without_warning": f"{sum(unwarned)} of {len(unwarned)}",
            "mean_relative_error": round(float(np.mean(values["error"])), 4),
            "lists_that_count": round(float(np.median(values["size"]))),
        }
        results.add_printed("coverage", figures)


def main() -> None:
    options = parser(__doc__, seed=0, new_items=1000, worlds=12)
    options.add_argument("--customers", type=int, help="default: 3000, and 300 with --explore")
    options.add_argument("--days", type=float, help="default: 20, and 14 with --explore")
    options.add_argument("--explore", action="store_true", help="ask whether off-policy estimates are right, instead")
    options.add_argument("--target", default="item-graph", help="the model whose clicks are estimated")
    options.add_argument("--temperature", type=float, default=1.0, help="temperature of lists, of both models")
    options.add_argument("--minutes", type=float, default=10.0, help="wall time of the traffic")
    options.add_argument("--model", default="item-graph", help="the model to train")
    options.add_argument("--run", type=Path, help="a run that was trained on --data shop, instead")
    options.add_argument("--update-every", default="2m", help="time between two updates")
    options.add_argument("--drift", type=float, default=0.8, help="share of tastes and popularity that changes")
    options.add_argument("--browsing", type=float, default=3.0, help="items that are found at a visit without a list")
    options.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder for all files")
    arguments = options.parse_args()
    results = Results(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    arguments.customers = arguments.customers or (300 if arguments.explore else 3000)
    arguments.days = arguments.days or (14.0 if arguments.explore else 20.0)
    if arguments.explore:
        measure_exploration(arguments, results)
        return
    if arguments.keep is not None:
        arguments.keep.mkdir(parents=True)
        measure(arguments, arguments.keep, results)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, Path(folder), results)


if __name__ == "__main__":
    main()
