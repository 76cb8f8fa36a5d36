"""The untrained item graph: figures and seconds, fit and all users.

python benchmarks/item_graph.py DATASET_FOLDER ... [--refit] [--protocol leave-one-out] [--recipe NAME]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset
from nextitem.evaluation.evaluate import evaluate_lists, recommend_all
from nextitem.models.item_graph import ItemGraph, ItemGraphConfig
from nextitem.recipes import read_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--refit", action="store_true", help="learn from validation events too")
    parser.add_argument("--protocol", default="leave-one-out")
    parser.add_argument("--recipe", help="settings of the model, for example amazon14-sports/item-graph")
    arguments = parser.parse_args()
    for folder in arguments.folders:
        split = make_split(load_dataset(folder), arguments.protocol)
        learnt = split.refit() if arguments.refit else split.train
        settings = ItemGraphConfig()
        if arguments.recipe:
            fields = {
                name: value for name, value in read_recipe(arguments.recipe)[1]["model"].items() if name != "name"
            }
            settings = ItemGraphConfig(**fields)
        model = ItemGraph(settings, learnt.catalog)
        model.set_popularity(torch.from_numpy(learnt.interactions.item_counts()).float())
        began = time.perf_counter()
        model.fit(learnt)
        fitted = time.perf_counter()
        recommend_all(model, split.test, 10)
        done = time.perf_counter()
        found = evaluate_lists(model, split.test, train=learnt)
        print(
            json.dumps(
                {
                    "data": folder.name,
                    "refit": arguments.refit,
                    "recall@10": round(found.metrics["recall@10"], 4),
                    "ndcg@10": round(found.metrics["ndcg@10"], 4),
                    "fit_s": round(fitted - began, 2),
                    "all_users_s": round(done - fitted, 2),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
