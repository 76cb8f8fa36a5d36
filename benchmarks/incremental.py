"""One more event of a history, read with and without the state that a model has kept of it.

    python benchmarks/incremental.py [--block ligr] [--width 64] [--layers 2] [--repeats 15] [--threads 1]

SASRec with untrained weights, positions counted from the first item. Times are of `read` alone, without scoring.

Within the window, reading with and without the state take turns within a repeat. One JSON line for each history length
and batch size: medians in milliseconds, ratio, size of the state of one user.

Beyond the window, one user's events come one at a time, each read with the state that the one before it left. One JSON
line for each step by which the window slides: mean and largest time of an event, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import polars as pl
import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.ids import IdMap
from nextitem.core.jagged import Jagged
from nextitem.models.sasrec import SASRec, SASRecConfig
from nextitem.nn.attention.transformer import BLOCKS

ITEMS = 10_000


def model_of(window: int, *, block: str, width: int, layers: int, window_step: int = 1) -> SASRec:
    """Return a model with random weights that reads `window` events."""
    ids = pl.Series("item_id", range(1, ITEMS + 1))
    config = SASRecConfig(
        width=width,
        layers=layers,
        block=block,  # type: ignore[arg-type]
        positions="from-first",
        max_history_length=window,
        window_step=window_step,
    )
    torch.manual_seed(0)
    return SASRec(config, Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))).eval()


def milliseconds(work: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def compare(model: SASRec, *, length: int, users: int, repeats: int) -> dict[str, float]:
    """Medians over the repeats, after one that does not count."""
    items = torch.randint(1, ITEMS + 1, (users, length + 1), generator=torch.Generator().manual_seed(1))
    batch = SequenceBatch(Jagged.from_padded(items, torch.full((users,), length + 1)))
    state = model.read(SequenceBatch(Jagged.from_padded(items[:, :length], torch.full((users,), length))))
    difference = (model.read(batch, state).user_vectors - model.read(batch).user_vectors).abs().max()
    assert float(difference) < 1e-4, difference
    times = [
        (milliseconds(lambda: model.read(batch)), milliseconds(lambda: model.read(batch, state)))
        for _ in range(repeats + 1)
    ][1:]
    whole, step = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "whole_ms": round(whole, 3),
        "one_more_ms": round(step, 3),
        "ratio": round(whole / step, 1),
        "state_kib_per_user": round(state.num_bytes / users / 1024, 1),
    }


def slide(model: SASRec, *, length: int, events: int) -> dict[str, float]:
    """Time `events` further events of one user, one by one, from a history of twice the window on."""
    items = torch.randint(1, ITEMS + 1, (2 * length + events,), generator=torch.Generator().manual_seed(1))

    def history(count: int) -> SequenceBatch:
        return SequenceBatch(Jagged(items[:count], torch.tensor([0, count])))

    state = model.read(history(2 * length))
    times = []
    for count in range(2 * length + 1, 2 * length + events + 1):
        batch = history(count)
        began = time.perf_counter()
        state = model.read(batch, state)
        times.append((time.perf_counter() - began) * 1e3)
    difference = (state.user_vectors - model.read(history(2 * length + events)).user_vectors).abs().max()
    assert float(difference) < 1e-4, difference
    return {"mean_ms": round(statistics.mean(times), 3), "largest_ms": round(max(times), 3), "events": events}


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--block", choices=BLOCKS, default="ligr")
    for name, default in (("width", 64), ("layers", 2), ("repeats", 15), ("threads", 1)):
        options.add_argument(f"--{name}", type=int, default=default)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    shared = {"block": chosen.block, "width": chosen.width, "layers": chosen.layers, "threads": chosen.threads}
    for length in (50, 200, 1000):
        model = model_of(length + 1, block=chosen.block, width=chosen.width, layers=chosen.layers)
        for users in (1, 64):
            row = compare(model, length=length, users=users, repeats=chosen.repeats)
            print(json.dumps({"history": length, "users": users, **row, **shared}), flush=True)
    for length, step, events in ((1024, 1, 40), (1024, 128, 512), (1024, 512, 512)):
        model = model_of(length, block=chosen.block, width=chosen.width, layers=chosen.layers, window_step=step)
        row = slide(model, length=length, events=events)
        print(json.dumps({"window": length, "window_step": step, **row, **shared}), flush=True)


if __name__ == "__main__":
    main()
