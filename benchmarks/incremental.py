"""One more event of a history, read with and without the state that a model has kept of it.

    python benchmarks/incremental.py [--block ligr] [--width 64] [--layers 2] [--repeats 15] [--threads 1]

SASRec with untrained weights, positions counted from the first item. Times are of `read` alone, without scoring; the
two ways take turns within a repeat. One JSON line for each history length and batch size: medians in milliseconds,
ratio, size of the state of one user.
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


def model_of(length: int, *, block: str, width: int, layers: int) -> SASRec:
    """With random weights and a window for one event more than `length`."""
    ids = pl.Series("item_id", range(1, ITEMS + 1))
    config = SASRecConfig(
        width=width,
        layers=layers,
        block=block,  # type: ignore[arg-type]
        positions="from-first",
        max_history_length=length + 1,
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
    difference = (model.read(batch, state).vectors - model.read(batch).vectors).abs().max()
    assert float(difference) < 1e-4, difference
    times = [
        (milliseconds(lambda: model.read(batch)), milliseconds(lambda: model.read(batch, state)))
        for _ in range(repeats + 1)
    ][1:]
    whole, step = (statistics.median(column) for column in zip(*times, strict=True))
    kept = sum(value.numel() * value.element_size() for value in state.cache.values()) / users
    return {
        "whole_ms": round(whole, 3),
        "one_more_ms": round(step, 3),
        "ratio": round(whole / step, 1),
        "state_kib_per_user": round(kept / 1024, 1),
    }


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--block", choices=BLOCKS, default="ligr")
    for name, default in (("width", 64), ("layers", 2), ("repeats", 15), ("threads", 1)):
        options.add_argument(f"--{name}", type=int, default=default)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    shared = {"block": chosen.block, "width": chosen.width, "layers": chosen.layers, "threads": chosen.threads}
    for length in (50, 200, 1000):
        model = model_of(length, block=chosen.block, width=chosen.width, layers=chosen.layers)
        for users in (1, 64):
            row = compare(model, length=length, users=users, repeats=chosen.repeats)
            print(json.dumps({"history": length, "users": users, **row, **shared}), flush=True)


if __name__ == "__main__":
    main()
