"""Item-CF against the implicit library: fit and recommend to every user, alternating, in one process.

    python benchmarks/item_cf.py DATASET_FOLDER [--runs 5] [--threads 2]

Ours runs without decay and activity penalty, so that both compute cosine similarities of binary columns. Prints
one JSON line: the median seconds of each, their ratio, and the share of users whose top-10 sets agree, ties at the
last place aside. The lists are compared with all neighbours: a cut among equal similarities is arbitrary.
"""

from __future__ import annotations

import os
import statistics
import warnings
from functools import partial
from pathlib import Path

from measure import Results, interleaved, median_ratio, parser

PARSER = parser(__doc__, runs=5, threads=2)
PARSER.add_argument("folder", type=Path)
ARGUMENTS = PARSER.parse_args()
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(ARGUMENTS.threads)

import numpy as np  # noqa: E402
import scipy.sparse as sp  # noqa: E402
import torch  # noqa: E402
from implicit.nearest_neighbours import CosineRecommender  # noqa: E402

from nextitem.core.batch import SequenceBatch  # noqa: E402
from nextitem.core.dataset import Dataset  # noqa: E402
from nextitem.core.interactions import Interactions  # noqa: E402
from nextitem.data.readers import load_dataset  # noqa: E402
from nextitem.models.item_cf import ItemCF, ItemCFConfig  # noqa: E402

NEIGHBOURS, K = 19, 10  # implicit counts an item among its own neighbours
warnings.filterwarnings("ignore", module="implicit")


Lists = tuple[np.ndarray, np.ndarray]  # items and scores of each user with events


def ours(dataset: Dataset, neighbours: int) -> Lists:
    """Fit our model and return the lists of all users."""
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
    for part in torch.split(rows, 1024):
        items = histories.select(part)
        answer = model.recommend(SequenceBatch(items, excluded=items), K)
        lists.append(answer.item_ids)
        scores.append(answer.scores)
    return torch.cat(lists).numpy(), torch.cat(scores).numpy()


def theirs(log: Interactions, neighbours: int) -> Lists:
    """Fit implicit's model and return the lists of all users."""
    shape = (log.num_users, log.num_items)
    matrix = sp.csr_matrix((np.ones(len(log), np.float32), (log.user_ids - 1, log.item_ids - 1)), shape=shape)
    matrix.data[:] = 1
    model = CosineRecommender(K=neighbours + 1, num_threads=ARGUMENTS.threads)
    model.fit(matrix, show_progress=False)
    rows = np.flatnonzero(np.diff(matrix.indptr))
    items, scores = model.recommend(rows, matrix[rows], N=K, filter_already_liked_items=True)
    return items + 1, scores


def agreement(mine: Lists, peer: Lists) -> float:
    """Return the share of users for whom every item above the peer's last score is in our list."""
    same = 0
    for our_items, their_items, their_scores in zip(mine[0], peer[0], peer[1], strict=True):
        real = their_scores > 1e-4
        last = their_scores[real].min() if real.any() else 0.0
        above = their_items[real & (their_scores > last + 1e-5)]
        same += set(above.tolist()) <= set(our_items.tolist())
    return same / len(mine[0])


def main() -> None:
    torch.set_num_threads(ARGUMENTS.threads)
    results = Results(ARGUMENTS)
    dataset = load_dataset(ARGUMENTS.folder)
    log = dataset.interactions.targets_only()
    same_lists = agreement(ours(dataset, dataset.catalog.num_items), theirs(log, dataset.catalog.num_items))
    works = {"ours": partial(ours, dataset, NEIGHBOURS), "implicit": partial(theirs, log, NEIGHBOURS)}
    seconds = interleaved(works, repeats=ARGUMENTS.runs, warmup=0)
    row = {
        "data": dataset.name,
        "ours_s": round(statistics.median(seconds["ours"]), 3),
        "implicit_s": round(statistics.median(seconds["implicit"]), 3),
        "ratio": median_ratio(seconds["ours"], seconds["implicit"]),
        "users_with_the_same_top_10": round(same_lists, 4),
    }
    results.add_printed(dataset.name, row)


if __name__ == "__main__":
    main()
