"""Does an updated model beat a frozen one in live traffic, if tastes drift and items arrive?

    python benchmarks/live_traffic.py --minutes 10 [--model item-graph] [--customers 1500] [--days 60]

Trains the model on the simulated shop (or takes --run), and starts `nextitem serve` with two copies of the run, of
which one is updated from the events of the store. Simulated customers visit it, half of them each model: many days of
the shop in so many minutes, in which interests, tastes and popularity drift and items arrive. Prints the shares of
lists with a click and a purchase by model with intervals and the verdict on the difference, from the log alone
(`nextitem report --live --pool-versions`), of all lists and of those after the first update, beside the true shares
that the simulation knows; and what each update did. --keep FOLDER keeps all files.
"""

from __future__ import annotations

import argparse
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

import polars as pl
from measure import Results, parser

if TYPE_CHECKING:
    from collections.abc import Iterator

FROZEN, UPDATED = "frozen", "updated"
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
        model: {"click": round(1 - click, 4), "purchase": round(1 - bought, 4)} for model, click, bought in shares.iter_rows()
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


def main() -> None:
    options = parser(__doc__, customers=1500, days=60, seed=0, new_items=400)
    options.add_argument("--minutes", type=float, default=10.0, help="wall time of the traffic")
    options.add_argument("--model", default="item-graph", help="the model to train")
    options.add_argument("--run", type=Path, help="a run that was trained on --data shop, instead")
    options.add_argument("--update-every", default="2m", help="time between two updates")
    options.add_argument("--drift", type=float, default=0.8, help="share of tastes and popularity that changes")
    options.add_argument("--browsing", type=float, default=1.0, help="items that are found at a visit without a list")
    options.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder for all files")
    arguments = options.parse_args()
    results = Results(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if arguments.keep is not None:
        arguments.keep.mkdir(parents=True)
        measure(arguments, arguments.keep, results)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, Path(folder), results)


if __name__ == "__main__":
    main()
