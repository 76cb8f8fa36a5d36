"""What do states of histories save in a server: time of a batch of returning users, each with one new event?

    python benchmarks/state_cache.py [--items 10000] [--users 300] [--repeats 60] [--threads 1]

Two engines of one model with random weights, with and without the cache of states, answer the same batches in turns.
Users return in random order; each has one more event than the last time. Prints one JSON line for each model, length
of the histories, window of the model and number of requests of a batch: median milliseconds of a batch with and without
states, their ratio, requests per second of both, share of hits, and the memory of a user's state. Times are processor
time of the thread, which a busy machine changes little. Everything that an engine does is timed: histories, states, the
search and the list. The store and HTTP are not.
"""

from __future__ import annotations

import argparse
import random
import time
from typing import Any

import numpy as np
import polars as pl
import torch
from measure import Results, interleaved, median_ms, median_ratio, parser

from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset, Users
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.core.recommender import Recommender
from nextitem.core.registry import MODELS
from nextitem.serving.engine import Engine
from nextitem.serving.requests import HistoryEvent, ServedRequest
from nextitem.serving.states import MIN_EVENTS, StateCache

START = 1_700_000_000_000
HOUR_MS = 3_600_000
SIZES = (32, 32, 32)
SETTINGS: dict[str, dict[str, Any]] = {
    "sasrec": {"width": 64, "layers": 2, "positions": "from-first"},
    "depth-decoder": {"width": 64},
    "hstu": {"width": 64, "layers": 2},
    "gru4rec": {"layers": [64]},
}


def dataset_of(users: int, length: int, items: int) -> Dataset:
    """Return a data set of random histories of `length` events."""
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(1, users + 1), length).astype(np.int32)
    times = np.tile(START + HOUR_MS * np.arange(length), users)
    log = Interactions(owners, rng.integers(1, items + 1, len(owners)).astype(np.int32), users, items, timestamps=times)
    ids = pl.Series("item_id", [f"i{number}" for number in range(1, items + 1)])
    catalog = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))
    codes = torch.from_numpy(np.stack(np.unravel_index(rng.permutation(np.prod(SIZES))[:items], SIZES), 1).astype("i4"))
    table = IdentifierTable.from_item_codes(codes, codebook_sizes=SIZES, catalog_fingerprint=catalog.fingerprint)
    names = pl.Series("user_id", [f"u{number}" for number in range(1, users + 1)])
    return Dataset("random", log, catalog.with_identifiers(table), Users(IdMap(names)), fingerprint="random")


def model_of(name: str, dataset: Dataset, window: int) -> Recommender:
    """Return a model with random weights that reads `window` events."""
    model_class = MODELS[name].load()
    settings = SETTINGS[name] if name == "gru4rec" else {**SETTINGS[name], "max_history_length": window}
    torch.manual_seed(0)
    model: Recommender = model_class(model_class.Config(**settings), dataset.catalog)
    model.set_popularity_from(dataset)
    return model.eval()


def compare(name: str, dataset: Dataset, *, window: int, size: int, repeats: int, min_events: int) -> dict[str, object]:
    """Return the figures of batches of `size` users."""
    model, rng = model_of(name, dataset, window), random.Random(0)
    engines = {"states": Engine(model, dataset), "whole": Engine(model, dataset)}
    states = engines["states"].states = StateCache(model, max_bytes=2**28, min_events=min_events)
    users, items = dataset.users.ids.external.to_list(), dataset.catalog.ids.external.to_list()
    events: dict[str, list[HistoryEvent]] = {user: [] for user in users}
    now, batches = START + 10_000 * HOUR_MS, []
    for _ in range(repeats + 1):
        asking = rng.sample(users, size)
        for user in asking:
            now += HOUR_MS
            events[user].append(HistoryEvent(rng.choice(items), None, now))
        stored = {user: list(events[user]) for user in asking}
        batches.append(([ServedRequest(user, k=10) for user in asking], stored))
    for start in range(0, len(users), 64):  # everybody has been here before
        engines["states"].recommend([ServedRequest(user, k=10) for user in users[start : start + 64]])
    misses, hits = states.misses, states.hits
    turns = {engine: iter(batches) for engine in engines}
    works = {engine: lambda engine=engine: engines[engine].recommend(*next(turns[engine])) for engine in engines}
    seconds = interleaved(works, repeats=repeats, clock=time.thread_time)
    num_hits, num_misses = states.hits - hits, states.misses - misses
    return {
        "states_ms": median_ms(seconds["states"]),
        "whole_ms": median_ms(seconds["whole"]),
        "ratio": median_ratio(seconds["whole"], seconds["states"]),
        "states_per_second": round(size * len(seconds["states"]) / sum(seconds["states"])),
        "whole_per_second": round(size * len(seconds["whole"]) / sum(seconds["whole"])),
        "hit_share": round(num_hits / max(1, num_hits + num_misses), 3),
        "state_kib_per_user": round(states.num_bytes / max(1, len(states)) / 1024, 1),
    }


def measure(arguments: argparse.Namespace, results: Results) -> None:
    cells = [(length, length + 64) for length in arguments.lengths]
    cells.append((arguments.lengths[-1], arguments.lengths[-1]))  # each event moves a full window
    for name in arguments.models:
        for length, window in cells:
            dataset = dataset_of(arguments.users, length, arguments.items)
            for size in arguments.sizes:
                options = {"size": size, "repeats": arguments.repeats, "min_events": arguments.min_events}
                row = compare(name, dataset, window=window, **options)
                about = {"model": name, "history": length, "window": window, "batch": size}
                results.add_printed(f"{name}, history {length} of {window}, batch {size}", {**about, **row})


def main() -> None:
    options = parser(__doc__, items=10_000, users=300, repeats=60, threads=1, min_events=MIN_EVENTS)
    options.add_argument("--models", nargs="+", choices=SETTINGS, default=["sasrec", "depth-decoder"])
    options.add_argument("--lengths", type=int, nargs="+", default=[20, 50], help="of histories")
    options.add_argument("--sizes", type=int, nargs="+", default=[1, 32], help="requests of a batch")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    measure(arguments, Results(arguments))


if __name__ == "__main__":
    main()
