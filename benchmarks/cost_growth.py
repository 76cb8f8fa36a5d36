"""How a training step's time and memory grow with the length of histories and with the size of the catalogue.

    python benchmarks/cost_growth.py [--plot docs/cost_growth.png] [--tokens 16384] [--steps 5] [--save rows.jsonl]
        [--lengths 128 256 512 1024 2048 4096 8192] [--items 10000 31623 100000 316228 1000000]

A step is loss, gradients and update, on generated events (ids drawn evenly, a history's events minutes to days apart),
width 64, two layers, two threads. Along the length every batch has the same number of events, so that what grows is the
work an event needs: with 10,000 items and 256 sampled negatives. Along the catalogue a batch has 64 histories of 64
events (gru4rec: 128 lanes). Each cell runs in a process of its own; its memory is the peak above what stood before the
first step, model and optimizer's state included. Prints a JSON line a cell; then, by least squares on logarithms, the
exponents over the whole range and over its upper half, where fixed costs weigh less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from matplotlib.figure import Figure

from nextitem.core.catalog import Catalog
from nextitem.core.ids import IdMap
from nextitem.core.jagged import Jagged
from nextitem.core.registry import MODELS
from nextitem.data.examples.next_item import NextItemBatch
from nextitem.data.examples.session_lanes import LaneBatch
from nextitem.training.config import TrainingConfig
from nextitem.training.optimizers import build_optimizer

SAMPLED = {"objective": "sampled-softmax", "num_negatives": 256}
ALONG_LENGTH: dict[str, dict[str, Any]] = {
    "sasrec": {"model": "sasrec", **SAMPLED},
    "hstu": {"model": "hstu", **SAMPLED},
    "hstu, stochastic length 1.6": {"model": "hstu", "stochastic_length": 1.6, **SAMPLED},
}
ALONG_ITEMS: dict[str, dict[str, Any]] = {
    "sasrec, full softmax": {"model": "sasrec", "objective": "full-softmax"},
    "sasrec, 256 negatives": {"model": "sasrec", **SAMPLED},
    "gru4rec, 2,048 negatives, sparse": {"model": "gru4rec", "num_negatives": 2048},
}


def kib(name: str) -> int:
    """A line of this process's own status: getrusage would give the parent's peak."""
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])


def one_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of a step (median) and its peak memory."""
    settings, length, items, rows = (cell[name] for name in ("settings", "length", "items", "rows"))
    torch.manual_seed(0)
    ids = [f"i{n}" for n in range(items)]
    catalog = Catalog(IdMap(pl.Series(ids)), pl.DataFrame({"item_id": ids}))
    kind: Any = MODELS[settings.pop("model")].load()
    gru = kind.__name__ == "GRU4Rec"
    shape = {"layers": (64,)} if gru else {"width": 64, "layers": 2, "max_history_length": length}
    before = kib("VmRSS")
    model = kind(kind.Config(**shape, **settings), catalog).train()
    model.set_popularity(torch.ones(items + 1))
    training = {"optimizer": "adagrad", "learning_rate": 0.05} if gru else {"optimizer": "adamw", "learning_rate": 1e-3}
    optimizer = build_optimizer(model, TrainingConfig(**training))
    offsets = torch.arange(rows + 1) * length
    times = Jagged(torch.randint(60_000, 10**8, (rows * length,)).cumsum(0), offsets)
    taken = []
    for step in range(cell["steps"] + 1):
        inputs, targets = torch.randint(1, items + 1, (2, rows * length))
        batch: Any = NextItemBatch(Jagged(inputs, offsets), Jagged(targets, offsets), step, times, times)
        if gru:
            batch = LaneBatch(
                inputs[:128], targets[:128], torch.arange(128), torch.zeros(128, dtype=torch.bool), 128, step
            )
        began = time.perf_counter()
        loss = model.training_loss(batch).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        taken.append(time.perf_counter() - began)
    events = 128 if gru else rows * length
    return {
        "ms": round(1000 * statistics.median(taken[1:]), 2),
        "events": events,
        "mib": round((kib("VmHWM") - before) / 1024, 1),
    }


def exponent(x: list[float], y: list[float]) -> float:
    """Slope of log y over log x."""
    return round(float(np.polyfit(np.log(x), np.log(y), 1)[0]), 2)


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Time and memory, along the length and along the catalogue."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    labels = {
        "length": ("length of a history (events)", "ms for 1,000 events", "peak MiB of a step, 16,384 events"),
        "items": ("items", "ms of a step", "peak MiB, model and state included"),
    }
    for column, along in enumerate(labels):
        for name in dict.fromkeys(row["what"] for row in rows if row["along"] == along):
            own = [row for row in rows if row["along"] == along and row["what"] == name]
            x = [row[along] for row in own]
            scale = [1000 / row["events"] if along == "length" else 1.0 for row in own]
            axes[0, column].plot(
                x, [row["ms"] * factor for row, factor in zip(own, scale, strict=True)], "o-", label=name
            )
            axes[1, column].plot(x, [row["mib"] for row in own], "o-", label=name)
        for row_number in (0, 1):
            axis = axes[row_number, column]
            axis.set(xscale="log", yscale="log", xlabel=labels[along][0], ylabel=labels[along][row_number + 1])
            axis.grid(which="both", alpha=0.3)
        axes[0, column].legend()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs="*", default=[128, 256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--items", type=int, nargs="*", default=[10_000, 31_623, 100_000, 316_228, 1_000_000])
    parser.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.cell:
        print(json.dumps(one_cell(chosen.cell)))
        return
    cells = [
        {"along": "length", "what": what, "settings": settings, "length": length, "items": 10_000}
        | {"rows": max(1, chosen.tokens // length)}
        for what, settings in ALONG_LENGTH.items()
        for length in chosen.lengths
    ]
    cells += [
        {"along": "items", "what": what, "settings": settings, "length": 64, "items": items, "rows": 64}
        for what, settings in ALONG_ITEMS.items()
        for items in chosen.items
    ]
    rows = []
    for cell in cells:
        line = [sys.executable, __file__, "--cell", json.dumps({**cell, "steps": chosen.steps})]
        found = json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
        rows.append({**{name: cell[name] for name in ("along", "what", "length", "items")}, **found})
        print(json.dumps({**rows[-1], "threads": torch.get_num_threads()}), flush=True)
    for along in ("length", "items"):
        for what in dict.fromkeys(row["what"] for row in rows if row["along"] == along):
            own = [row for row in rows if row["what"] == what and row["along"] == along]
            for name in ("ms", "mib"):
                x, y = [row[along] for row in own], [row[name] for row in own]
                half = len(own) // 2
                fitted = {"all": exponent(x, y), "upper half": exponent(x[half:], y[half:])}
                print(json.dumps({"along": along, "what": what, "of": name, "exponent": fitted}), flush=True)
    if chosen.save:
        chosen.save.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if chosen.plot:
        draw(rows, chosen.plot)


if __name__ == "__main__":
    main()
