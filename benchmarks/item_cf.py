"""Item-CF against the implicit library: fit and recommend to every user, alternating, in one process.

    python benchmarks/item_cf.py DATASET_FOLDER [--runs 5] [--threads 2]

Ours runs without decay and activity penalty, so that both compute cosine similarities of binary columns. Prints the
median seconds of each, their ratio, and the share of users whose top-10 sets agree, ties at the last place aside. The
lists are compared with all neighbours kept: where many similarities are equal, which of them a cut keeps is chance.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from pathlib import Path

PARSER = argparse.ArgumentParser(description=__doc__.splitlines()[0])
PARSER.add_argument("folder", type=Path)
PARSER.add_argument("--runs", type=int, default=5)
PARSER.add_argument("--threads", type=int, default=2)
ARGUMENTS = PARSER.parse_args()
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(ARGUMENTS.threads)

import numpy as np  # noqa: E402
import scipy.sparse as sp  # noqa: E402
import torch  # noqa: E402
from implicit.nearest_neighbours import CosineRecommender  # noqa: E402

from nextitem.core.batch import SequenceBatch  # noqa: E402
from nextitem.core.dataset import Dataset  # noqa: E402
from nextitem.data.readers import load_dataset  # noqa: E402
from nextitem.models.item_cf import ItemCF, ItemCFConfig  # noqa: E402

NEIGHBOURS, K = 19, 10  # implicit counts an item among its own neighbours
warnings.filterwarnings("ignore", module="implicit")


def ours(dataset: Dataset, neighbours: int) -> tuple[float, np.ndarray, np.ndarray]:
    began = time.perf_counter()
    config = ItemCFConfig(
        neighbours=neighbours,
        window=None,
        activity_penalty=False,
        normalise_rows=False,
        recent_items=None,
        recency_decay=1.0,
    )
    model = ItemCF(config, dataset.catalog)
    model.fit(dataset)
    histories = dataset.interactions.targets_only().histories()
    rows = (histories.lengths > 0).nonzero()[:, 0]
    lists, scores = [], []
    for part in rows.split(1024):
        items = histories.select(part)
        found = model.recommend(SequenceBatch(items, excluded=items), K)
        lists.append(found.item_ids)
        scores.append(found.scores)
    return time.perf_counter() - began, torch.cat(lists).numpy(), torch.cat(scores).numpy()


def theirs(dataset: Dataset, neighbours: int) -> tuple[float, np.ndarray, np.ndarray]:
    log = dataset.interactions.targets_only()
    began = time.perf_counter()
    shape = (log.num_users, log.num_items)
    taken = sp.csr_matrix((np.ones(len(log), np.float32), (log.user_ids - 1, log.item_ids - 1)), shape=shape)
    taken.data[:] = 1
    model = CosineRecommender(K=neighbours + 1, num_threads=ARGUMENTS.threads)
    model.fit(taken, show_progress=False)
    rows = np.flatnonzero(np.diff(taken.indptr))
    items, scores = model.recommend(rows, taken[rows], N=K, filter_already_liked_items=True)
    return time.perf_counter() - began, items + 1, scores


def agreement(mine: list[np.ndarray], peer: list[np.ndarray]) -> float:
    """Share of users for whom every item above the peer's last score is in our list."""
    same = 0
    for our_items, their_items, their_scores in zip(mine[0], peer[0], peer[1], strict=True):
        real = their_scores > 1e-4
        last = their_scores[real].min() if real.any() else 0.0
        above = their_items[real & (their_scores > last + 1e-5)]
        same += set(above.tolist()) <= set(our_items.tolist())
    return same / len(mine[0])


def main() -> None:
    torch.set_num_threads(ARGUMENTS.threads)
    dataset = load_dataset(ARGUMENTS.folder)
    _, *our_lists = ours(dataset, dataset.catalog.num_items)
    _, *their_lists = theirs(dataset, dataset.catalog.num_items)
    mine, peer = [], []
    for _ in range(ARGUMENTS.runs):
        mine.append(ours(dataset, NEIGHBOURS)[0])
        peer.append(theirs(dataset, NEIGHBOURS)[0])
    print(
        json.dumps(
            {
                "data": dataset.name,
                "ours_s": round(statistics.median(mine), 3),
                "implicit_s": round(statistics.median(peer), 3),
                "ratio": round(statistics.median(a / b for a, b in zip(mine, peer, strict=True)), 2),
                "users_with_the_same_top_10": round(agreement(our_lists, their_lists), 4),
            }
        )
    )


if __name__ == "__main__":
    main()
