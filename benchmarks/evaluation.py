"""Evaluation of a vector model on amazon14-beauty: 22,363 requests over 12,101 items, everything included.

    NEXTITEM_DATA=<folder of data sets> python benchmarks/evaluation.py

Random vectors stand for a trained model: the figures mean nothing, the work is the same. Target: <= 5 s on two cores.
The sum without recommendations (metrics, slices, intervals) and the model's own share are told apart.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch

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
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", default="amazon14-beauty")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--repeats", type=int, default=3)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    dataset = load_dataset(Path(os.environ["NEXTITEM_DATA"]) / chosen.data)
    split = make_split(dataset, "leave-one-out")
    model = RandomVectors(dataset.catalog)
    model.set_popularity(torch.from_numpy(split.train.interactions.item_counts()).float())
    for repeat in range(chosen.repeats):
        began = time.perf_counter()
        evaluation = evaluate_lists(model, split.test, train=split.train)
        whole = time.perf_counter() - began
        began = time.perf_counter()
        recommend_all(model, split.test, 20)
        lists = time.perf_counter() - began
        print(
            f"run {repeat + 1}: {evaluation.requests:,} requests x {model.num_items:,} items, "
            f"{chosen.threads} threads: "
            f"{whole:.2f} s ({whole / TARGET_SECONDS:.2f} of the target), of it lists {lists:.2f} s"
        )


if __name__ == "__main__":
    main()
