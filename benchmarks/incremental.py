"""Time of reading one more event of a history, with and without the state of the events before it.

    python benchmarks/incremental.py [--block ligr] [--width 64] [--layers 2] [--repeats 15] [--threads 1]

SASRec with untrained weights, positions counted from the first item. Times are of `read` alone, without scoring.

Within the window, reading with and without the state take turns within a repeat. Prints one JSON line for each history
length and batch size: medians in milliseconds, ratio, size of the state of one user.

Beyond the window, one user's events come one at a time, each read with the state of the event before it. Prints one
JSON line for each step by which the window slides: mean and largest time of an event, in milliseconds.
"""

from __future__ import annotations

import statistics
from typing import Any

import polars as pl
import torch
from measure import Results, Stopwatch, interleaved, median_ms, parser

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.ids import IdMap
from nextitem.core.jagged import Jagged
from nextitem.models.sasrec import SASRec, SASRecConfig
from nextitem.nn.attention.transformer import BLOCKS

ITEMS = 10_000


def model_of(window: int, *, block: Any, width: int, layers: int, window_step: int = 1) -> SASRec:
    """Return a model with random weights that reads `window` events."""
    ids = pl.Series("item_id", range(1, ITEMS + 1))
    config = SASRecConfig(
        width=width,
        layers=layers,
        block=block,
        positions="from-first",
        max_history_length=window,
        window_step=window_step,
    )
    torch.manual_seed(0)
    return SASRec(config, Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))).eval()


def compare(model: SASRec, *, length: int, users: int, repeats: int) -> dict[str, float]:
    """Return medians over the repeats, after one that does not count."""
    items = torch.randint(1, ITEMS + 1, (users, length + 1), generator=torch.Generator().manual_seed(1))
    batch = SequenceBatch(Jagged.from_padded(items, torch.full((users,), length + 1)))
    state = model.encode_history(SequenceBatch(Jagged.from_padded(items[:, :length], torch.full((users,), length))))
    difference = (
        (model.encode_history(batch, state).user_vectors - model.encode_history(batch).user_vectors).abs().max()
    )
    assert float(difference) < 1e-4, difference
    works = {"whole": lambda: model.encode_history(batch), "one more": lambda: model.encode_history(batch, state)}
    seconds = interleaved(works, repeats=repeats)
    whole, step = median_ms(seconds["whole"], 3), median_ms(seconds["one more"], 3)
    return {
        "whole_ms": whole,
        "one_more_ms": step,
        "ratio": round(whole / step, 1),
        "state_kib_per_user": round(state.num_bytes / users / 1024, 1),
    }


def slide(model: SASRec, *, length: int, events: int) -> dict[str, float]:
    """Time `events` further events of one user, one by one, from a history of twice the window on."""
    items = torch.randint(1, ITEMS + 1, (2 * length + events,), generator=torch.Generator().manual_seed(1))

    def history(count: int) -> SequenceBatch:
        return SequenceBatch(Jagged(items[:count], torch.tensor([0, count])))

    state = model.encode_history(history(2 * length))
    times = []
    for count in range(2 * length + 1, 2 * length + events + 1):
        batch = history(count)
        with Stopwatch() as watch:
            state = model.encode_history(batch, state)
        times.append(watch.milliseconds)
    difference = (state.user_vectors - model.encode_history(history(2 * length + events)).user_vectors).abs().max()
    assert float(difference) < 1e-4, difference
    return {"mean_ms": round(statistics.mean(times), 3), "largest_ms": round(max(times), 3), "events": events}


def main() -> None:
    options = parser(__doc__, width=64, layers=2, repeats=15, threads=1)
    options.add_argument("--block", choices=BLOCKS, default="ligr")
    options.add_argument("--lengths", type=int, nargs="*", default=[50, 200, 1000], help="of histories in the window")
    options.add_argument("--window", type=int, default=1024, help="of a history that is longer than it")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    results = Results(arguments)
    shared = {
        "block": arguments.block,
        "width": arguments.width,
        "layers": arguments.layers,
        "threads": arguments.threads,
    }
    for length in arguments.lengths:
        model = model_of(length + 1, block=arguments.block, width=arguments.width, layers=arguments.layers)
        for users in (1, 64):
            row = compare(model, length=length, users=users, repeats=arguments.repeats)
            results.add_printed(
                f"history {length}, {users} users", {"history": length, "users": users, **row, **shared}
            )
    length = arguments.window
    for step, events in ((1, 40), (length // 8, length // 2), (length // 2, length // 2)):
        model = model_of(
            length, block=arguments.block, width=arguments.width, layers=arguments.layers, window_step=step
        )
        row = slide(model, length=length, events=events)
        results.add_printed(f"window step {step}", {"window": length, "window_step": step, **row, **shared})


if __name__ == "__main__":
    main()
