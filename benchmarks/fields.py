"""Cost of each field of rankers, in microseconds for each candidate.

    python benchmarks/fields.py [--customers 2000] [--candidates 6] [--requests 256] [--seed 0]

Requests are impressions of the simulated shop, with further random candidates if `--candidates` is above the six that
were shown. Fields are measured one at a time, so that each pays for what it shares with others; the last row measures
all of them together.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from measure import Results, Stopwatch, parser

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.data.examples.labelled_candidates import impression_examples
from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset
from nextitem.data.shop.shop import generate_shop
from nextitem.nn.fields.fields import Fields

REPEATS = 5


def with_random_candidates(requests: SequenceBatch, count: int, num_items: int, seed: int) -> SequenceBatch:
    """Return the requests with `count` random candidates each."""
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(1, num_items + 1, (requests.num_requests * count,), generator=generator)
    offsets = torch.arange(requests.num_requests + 1) * count
    return replace(requests, candidates=Jagged(items, offsets), candidate_features={}, candidate_labels={})


def microseconds(fields: Fields, requests: SequenceBatch) -> float:
    """Return the least processor time of several runs over a batch, in microseconds for each candidate."""
    assert requests.candidates is not None
    times = []
    for _ in range(REPEATS):
        with Stopwatch(time.process_time) as watch:
            fields(requests)
        times.append(watch.seconds)
    return min(times) / len(requests.candidates.values) * 1e6


def main() -> None:
    options = parser(__doc__, customers=2000, candidates=6, requests=256, seed=0)
    arguments = options.parse_args()
    results = Results(arguments)
    with TemporaryDirectory() as folder:
        generate_shop(0, num_users=arguments.customers).write(Path(folder) / "shop")
        data = load_dataset(Path(folder) / "shop")
        train = make_split(data, "impressions").train
        examples = impression_examples(train)
        requests = examples.sample(arguments.requests)
        requests = with_random_candidates(requests, arguments.candidates, data.catalog.num_items, arguments.seed)
        print("| field | microseconds per candidate |")
        print("| --- | --- |")
        names = Fields(data.catalog).all_names
        for selected in (*((name,) for name in names), names):
            fields = Fields(data.catalog, selected)
            fields.fit(examples, train.interactions)
            figure = microseconds(fields.eval(), requests)
            name = selected[0] if len(selected) == 1 else "all fields together"
            print(f"| {name} | {figure:.2f} |", flush=True)
            results.add(name, {"microseconds": figure})


if __name__ == "__main__":
    main()
