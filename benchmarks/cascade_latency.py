"""Time of one request through a whole cascade, by stage, at several sizes of catalogue.

Four channels, 1,000 candidates, a two-tower pre-ranker to 200, a ranker (din of width 16) over 50 events, dpp to 20.
What is fitted in closed form is fitted to a generated log; networks have random weights, on which time does not depend.

    python benchmarks/cascade_latency.py [--items 100000 1000000] [--ranker hstu-ranking] [--requests 100] [--threads 2]

Prints p50 and p99 of the whole, and p50 of each channel and stage.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any, cast

import numpy as np
import polars as pl
import torch
from measure import Results, Stopwatch, median_ms, parser

from nextitem.cascade.cascade import Cascade, CascadeConfig
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog, ColumnEncoding
from nextitem.core.dataset import Dataset, Users
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.core.recommender import Recommender
from nextitem.core.roles import ClosedForm

DAY_MS = 86_400_000
WARMUP = 5  # requests before the first measured one
COUNTRIES = [f"country{number}" for number in range(20)]


def generated(num_items: int, *, num_users: int, events: int, seed: int) -> Dataset:
    """Return a log in which users stay near a place of their own on a ring of items, with a shop's item columns."""
    rng = np.random.default_rng(seed)
    users = np.sort(rng.integers(1, num_users + 1, events)).astype(np.int32)
    home = rng.integers(0, num_items, num_users + 1)
    near = (home[users] + rng.geometric(0.01, events) * rng.choice([-1, 1], events)) % num_items
    popular = (num_items * rng.random(events) ** 3).astype(np.int64)
    items = (np.where(rng.random(events) < 0.7, near, popular) + 1).astype(np.int32)
    times = np.sort(rng.integers(0, 90 * DAY_MS, events)).astype(np.int64)
    log = Interactions(users, items, num_users, num_items, timestamps=times)
    ids = pl.Series("item_id", np.arange(1, num_items + 1))
    table = pl.DataFrame(
        {
            "item_id": ids,
            "category": [f"c{number}" for number in rng.integers(0, 200, num_items)],
            "brand": [f"b{number}" for number in rng.integers(0, 2000, num_items)],
            "price": rng.lognormal(3, 1, num_items),
        }
    )
    columns = {"user.country": ColumnEncoding("categorical", pl.Series(sorted(COUNTRIES)))}
    features = {"category": "categorical", "brand": "categorical", "price": "numeric"}
    catalog = Catalog(IdMap(ids), table, features=features, requests=columns)
    people = pl.DataFrame({"user_id": np.arange(1, num_users + 1), "country": rng.choice(COUNTRIES, num_users)})
    users_table = Users(IdMap(people["user_id"]), people, features={"country": "categorical"})
    return Dataset("generated", log, catalog, users_table)


def settings(ranker_name: str) -> CascadeConfig:
    """Return the settings of the cascade that is timed."""
    ranker = {"name": ranker_name, "width": 16, "objective": "listwise", "max_history_length": 50}
    channels = {
        "item-cf": (300, {"name": "item-cf"}),
        "two-tower": (400, {"name": "two-tower"}),
        "geo-popularity": (150, {"name": "geo-popularity"}),
        "popularity": (150, {"name": "popularity"}),
    }
    return CascadeConfig.model_validate(
        {
            "channels": {name: {"quota": quota, "model": model} for name, (quota, model) in channels.items()},
            "candidates": 1000,
            "pre_ranking": {"keep": 200, "model": {"name": "two-tower"}},
            "ranking": {"keep": 200, "model": ranker},
            "reranking": [{"name": "dpp"}],
            "reranked_from": 200,
        }
    )


def request(data: Dataset, user: int) -> SequenceBatch:
    """Return a request with the latest 50 events of a user."""
    log = data.interactions
    assert log.timestamps is not None
    rows = slice(max(log.offsets[user - 1], log.offsets[user] - 50), log.offsets[user])
    return SequenceBatch(
        Jagged.from_rows([log.item_ids[rows].tolist()]),
        timestamps=Jagged.from_rows([log.timestamps[rows].tolist()]),
        user_ids=torch.tensor([user]),
        request_times=torch.tensor([91 * DAY_MS]),
        context={"user.country": torch.tensor([1 + user % len(COUNTRIES)])},
    )


def fitted_cascade(data: Dataset, ranker_name: str, *, seed: int) -> Cascade:
    """Return the cascade, with what is fitted in closed form fitted to the data."""
    torch.manual_seed(seed)
    model = Cascade(settings(ranker_name), data.catalog)
    model.set_popularity(torch.from_numpy(data.interactions.item_counts()).float())
    for channel in model.channels:
        if isinstance(channel, ClosedForm):
            channel.fit(data)
    for part in (model.ranker, model.pre_ranker, *model.channels):
        fields: Any = getattr(part, "fields", None)
        if fields is not None:
            fields.fit(request(data, 1), data.interactions)
    return model.eval()


@torch.inference_mode()
def stage_seconds(model: Cascade, batch: SequenceBatch) -> dict[str, float]:
    """Return the seconds of each channel and of each stage for one request."""
    seconds: dict[str, float] = {}
    for name, channel, quota in zip(model.channel_names, model.channels, model.rates.quotas, strict=True):
        with Stopwatch() as watch:
            cast(Recommender, channel).recommend(batch, quota)
        seconds[f"channel {name}"] = watch.seconds
    stages = model.stages(batch, 20)
    while True:
        with Stopwatch() as watch:
            stage = next(stages, None)
        if stage is None:
            return seconds
        seconds[stage[0]] = watch.seconds


def main() -> None:
    options = parser(__doc__, users=20_000, events=1_000_000, requests=100, threads=2, seed=0)
    options.add_argument("--ranker", default="din", help="a ranker with fields and a history; default: din")
    options.add_argument("--items", type=int, nargs="+", default=[100_000])
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    results = Results(arguments)
    for num_items in arguments.items:
        data = generated(num_items, num_users=arguments.users, events=arguments.events, seed=arguments.seed)
        model = fitted_cascade(data, arguments.ranker, seed=arguments.seed)
        whole: list[float] = []
        by_stage: dict[str, list[float]] = defaultdict(list)
        for number in range(arguments.requests + WARMUP):
            batch = request(data, 1 + number)
            for name, seconds in stage_seconds(model, batch).items():
                by_stage[name].append(seconds)
            with Stopwatch() as watch:
                model.recommend(batch, 20)
            whole.append(watch.seconds)
        ordered = sorted(whole[WARMUP:])
        p50, p99 = 1e3 * statistics.median(ordered), 1e3 * ordered[-2]
        print(f"{num_items:,} items: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        medians = {name: median_ms(seconds[WARMUP:]) for name, seconds in by_stage.items()}
        for name, ms in medians.items():
            print(f"    {name}: {ms:.2f} ms")
        results.add(f"{num_items} items", {"p50_ms": p50, "p99_ms": p99, "p50_ms_of_stages": medians})


if __name__ == "__main__":
    main()
