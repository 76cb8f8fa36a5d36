"""Seconds of a whole evaluation of a vector model on amazon14-beauty: 22,363 requests over 12,101 items.

    NEXTITEM_DATA=DATA python benchmarks/evaluation.py [--data amazon14-beauty] [--repeats 3] [--threads 2]

DATA is the folder of data sets. The model has random vectors: the work is that of a trained one, the metrics mean
nothing. Target: at most 5 s on two cores. Prints a line for each repeat: seconds of everything (lists, metrics, slices,
intervals), and of the lists alone.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from measure import Results, Stopwatch, parser

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.config import Config
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.core.top_items import top_items
from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset
from nextitem.evaluation.evaluate import evaluate_lists, recommend_all

WIDTH = 64
TARGET_SECONDS = 5.0


class RandomVectors(Recommender):
    """Scores by inner products of random vectors: the mean of the history's last ten with each item's."""

    Config = Config

    def __init__(self, catalog: Catalog) -> None:
        super().__init__(Config(), catalog)
        self.vectors = torch.randn(catalog.num_items + 1, WIDTH, generator=torch.Generator().manual_seed(0))

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        users = self.vectors[batch.items.to_padded(10)].mean(1)
        return top_items(users @ self.vectors.T, batch, k)


def main() -> None:
    options = parser(__doc__, threads=2, repeats=3)
    options.add_argument("--data", default="amazon14-beauty")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    results = Results(arguments)
    dataset = load_dataset(Path(os.environ["NEXTITEM_DATA"]) / arguments.data)
    split = make_split(dataset, "leave-one-out")
    model = RandomVectors(dataset.catalog)
    model.set_popularity(torch.from_numpy(split.train.interactions.item_counts()).float())
    for repeat in range(arguments.repeats):
        with Stopwatch() as whole:
            evaluation = evaluate_lists(model, split.test, train=split.train)
        with Stopwatch() as lists:
            recommend_all(model, split.test, 20)
        print(
            f"run {repeat + 1}: {evaluation.requests:,} requests x {model.num_items:,} items, "
            f"{arguments.threads} threads: {whole.seconds:.2f} s "
            f"({whole.seconds / TARGET_SECONDS:.2f} of the target), of it lists {lists.seconds:.2f} s"
        )
        sizes = {"requests": evaluation.requests, "items": model.num_items}
        seconds = {"seconds": whole.seconds, "lists_seconds": lists.seconds}
        results.add(f"run {repeat + 1}", {**sizes, **seconds, "share_of_target": whole.seconds / TARGET_SECONDS})


if __name__ == "__main__":
    main()
