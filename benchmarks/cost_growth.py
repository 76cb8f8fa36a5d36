"""Growth of a training step's time and memory with the length of histories and the size of the catalogue.

    python benchmarks/cost_growth.py [--plot docs/cost_growth.png] [--tokens 16384] [--steps 5] [--save rows.jsonl]
        [--lengths 128 256 512 1024 2048 4096 8192] [--items 10000 31623 100000 316228 1000000] [--only depth-decoder]

A step is loss, gradients and update, on generated events (uniform random ids, a history's events minutes to days
apart), width 64, two layers, two threads. Along the length every batch has the same number of events, so that what
grows is the work of an event: with 10,000 items and 256 sampled negatives. Along the catalogue a batch has 64 histories
of 64 events (gru4rec: 128 lanes). depth-decoder has random codes, in two levels up to 200,000 items and in three above;
its targets are the next event, or the next five. Each cell runs in a process of its own; its memory is the peak minus
the memory before the model was built: model and optimizer's state included. Prints one JSON line for each cell; then,
by least squares on logarithms, the exponents over the whole range and over its upper half, where fixed costs weigh
less.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from guided_latency import catalog_of
from matplotlib.figure import Figure
from measure import Results, Stopwatch, in_own_process, median_ms, parser
from peers.meter import memory_mb

from nextitem.core.jagged import Jagged
from nextitem.core.registry import MODELS
from nextitem.data.examples.next_item import NextItemBatch
from nextitem.data.examples.session_lanes import LaneBatch
from nextitem.nn.quantisation.cluster_codes import equal_codebook_sizes
from nextitem.training.config import TrainingConfig
from nextitem.training.optimizers import build_optimizer

SAMPLED = {"objective": {"kind": "sampled-softmax", "num_negatives": 256}}
ALONG_LENGTH: dict[str, dict[str, Any]] = {
    "sasrec": {"model": "sasrec", **SAMPLED},
    "hstu": {"model": "hstu", **SAMPLED},
    "hstu, stochastic length 1.6": {"model": "hstu", "stochastic_length": 1.6, **SAMPLED},
}
ALONG_ITEMS: dict[str, dict[str, Any]] = {
    "sasrec, full softmax": {"model": "sasrec", "objective": "full-softmax"},
    "sasrec, 256 negatives": {"model": "sasrec", **SAMPLED},
    "depth-decoder, five targets": {"model": "depth-decoder"},
    "depth-decoder, next event": {"model": "depth-decoder", "target_weights": (1.0,)},
    "gru4rec, 2,048 negatives, sparse": {"model": "gru4rec", "num_negatives": 2048},
}


def one_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """Return milliseconds of a step (median), its events and its peak memory in MiB."""
    settings, length, items, rows = (cell[name] for name in ("settings", "length", "items", "rows"))
    torch.manual_seed(0)
    catalog = catalog_of(items, equal_codebook_sizes(items))
    kind: Any = MODELS[settings.pop("model")].load()
    is_gru = kind.__name__ == "GRU4Rec"
    shape = {"layers": (64,)} if is_gru else {"width": 64, "layers": 2, "max_history_length": length}
    before = memory_mb("VmRSS")
    model = kind(kind.Config(**shape, **settings), catalog).train()
    model.set_popularity(torch.ones(items + 1).index_fill_(0, torch.tensor([0]), 0))
    training = (
        {"optimizer": "adagrad", "learning_rate": 0.05} if is_gru else {"optimizer": "adamw", "learning_rate": 1e-3}
    )
    optimizer = build_optimizer(model, TrainingConfig(**training))
    offsets = torch.arange(rows + 1) * length
    times = Jagged(torch.randint(60_000, 10**8, (rows * length,)).cumsum(0), offsets)
    seconds = []
    for step in range(cell["steps"] + 1):
        inputs, targets = torch.randint(1, items + 1, (2, rows * length))
        batch: Any = NextItemBatch(Jagged(inputs, offsets), Jagged(targets, offsets), step, times, times)
        if is_gru:
            batch = LaneBatch(
                inputs[:128], targets[:128], torch.arange(128), torch.zeros(128, dtype=torch.bool), 128, step
            )
        with Stopwatch() as watch:
            loss = model.training_loss(batch).total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds.append(watch.seconds)
    events = 128 if is_gru else rows * length
    return {
        "ms": median_ms(seconds[1:]),
        "events": events,
        "mib": round(memory_mb("VmHWM") - before, 1),
    }


def exponent(x: list[float], y: list[float]) -> float:
    """Return the slope of log y over log x."""
    return round(float(np.polyfit(np.log(x), np.log(y), 1)[0]), 2)


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Plot time and memory, along the length and along the catalogue."""
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
    options = parser(__doc__, tokens=16_384, steps=5)
    options.add_argument("--plot", type=Path)
    options.add_argument("--save", type=Path)
    options.add_argument("--lengths", type=int, nargs="*", default=[128, 256, 512, 1024, 2048, 4096, 8192])
    options.add_argument("--items", type=int, nargs="*", default=[10_000, 31_623, 100_000, 316_228, 1_000_000])
    options.add_argument("--only", default="", help="beginning of the names of what is measured; default: everything")
    options.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.cell:
        print(json.dumps(one_cell(arguments.cell)))
        return
    results = Results(arguments)
    cells: list[dict[str, Any]] = [
        {"along": "length", "what": what, "settings": settings, "length": length, "items": 10_000}
        | {"rows": max(1, arguments.tokens // length)}
        for what, settings in ALONG_LENGTH.items()
        if what.startswith(arguments.only)
        for length in arguments.lengths
    ]
    cells += [
        {"along": "items", "what": what, "settings": settings, "length": 64, "items": items, "rows": 64}
        for what, settings in ALONG_ITEMS.items()
        if what.startswith(arguments.only)
        for items in arguments.items
    ]
    rows = []
    for cell in cells:
        figures = in_own_process(__file__, {**cell, "steps": arguments.steps})
        rows.append({**{name: cell[name] for name in ("along", "what", "length", "items")}, **figures})
        name = f"{cell['what']}, {cell['length']} events, {cell['items']} items"
        results.add_printed(name, {**rows[-1], "threads": torch.get_num_threads()})
    for along in ("length", "items"):
        for what in dict.fromkeys(row["what"] for row in rows if row["along"] == along):
            own = [row for row in rows if row["what"] == what and row["along"] == along]
            for name in ("ms", "mib"):
                x, y = [row[along] for row in own], [row[name] for row in own]
                half = len(own) // 2
                exponents = {"all": exponent(x, y), "upper half": exponent(x[half:], y[half:])}
                line = {"along": along, "what": what, "of": name, "exponent": exponents}
                results.add_printed(f"{what}, exponent of {name} along {along}", line)
    if arguments.save:
        arguments.save.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
