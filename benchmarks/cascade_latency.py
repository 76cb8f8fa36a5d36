"""Time of one request through a whole cascade, by stage, at several sizes of catalogue.

Four channels, 1,000 candidates, a two-tower pre-ranker to 200, din of width 16 over 50 events, dpp to 20. What is
fitted in closed form is fitted to a generated log; networks keep the weights that they start with: time does not
depend on them.

    python benchmarks/cascade_latency.py --items 100000 1000000
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import polars as pl
import torch

from nextitem.cascade.cascade import Cascade, CascadeConfig
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog, ColumnEncoding
from nextitem.core.dataset import Dataset, Users
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.core.roles import ClosedForm

DAY_MS = 86_400_000
COUNTRIES = [f"country{number}" for number in range(20)]


def generated(num_items: int, *, num_users: int, events: int, seed: int) -> Dataset:
    """A log in which users stay near a place of their own on a ring of items; item columns as a shop has them."""
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
    known = Users(IdMap(people["user_id"]), people, features={"country": "categorical"})
    return Dataset("generated", log, catalog, known)


def settings() -> CascadeConfig:
    """The cascade that is timed."""
    ranker = {"name": "din", "width": 16, "objective": "listwise", "max_history_length": 50}
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
    """The latest 50 events of a user."""
    log = data.interactions
    items = log.item_ids[log.offsets[user - 1] : log.offsets[user]][-50:]
    return SequenceBatch(
        Jagged.from_rows([items.tolist()]),
        user_ids=torch.tensor([user]),
        request_times=torch.tensor([91 * DAY_MS]),
        context={"user.country": torch.tensor([1 + user % len(COUNTRIES)])},
    )


def main() -> None:
    """Prints p50 and p99 of the whole and p50 of each stage and channel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[100_000])
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for num_items in given.items:
        data = generated(num_items, num_users=given.users, events=given.events, seed=given.seed)
        torch.manual_seed(given.seed)
        model = Cascade(settings(), data.catalog)
        model.set_popularity(torch.from_numpy(data.interactions.item_counts()).float())
        for channel in model.channels:
            if isinstance(channel, ClosedForm):
                channel.fit(data)
        for part in (model.ranker, model.pre_ranker, *model.channels):
            for fields in (getattr(part, "fields", None),):
                if fields is not None:
                    fields.fit(request(data, 1), data.interactions)
        model.eval()
        whole, by_stage = [], {}
        for number in range(given.requests + 5):
            asked = request(data, 1 + number)
            began = last = time.perf_counter()
            with torch.inference_mode():
                for name, channel, quota in zip(model.channel_names, model.channels, model.rates.quotas, strict=True):
                    channel.recommend(asked, quota)
                    now = time.perf_counter()
                    by_stage.setdefault(f"channel {name}", []).append(now - last)
                    last = now
                began = last = time.perf_counter()
                for name, _ in model.stages(asked, 20):
                    now = time.perf_counter()
                    by_stage.setdefault(name, []).append(now - last)
                    last = now
            began = time.perf_counter()
            model.recommend(asked, 20)
            whole.append(time.perf_counter() - began)
        ordered = sorted(whole[5:])
        print(f"{num_items:,} items: p50 {1e3 * statistics.median(ordered):.1f} ms, p99 {1e3 * ordered[-2]:.1f} ms")
        for name, times in by_stage.items():
            print(f"    {name}: {1e3 * statistics.median(times[5:]):.2f} ms")


if __name__ == "__main__":
    main()
