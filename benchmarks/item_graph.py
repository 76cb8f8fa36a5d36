"""Recall@10 and NDCG@10 of the untrained item graph, and the seconds of its fit and of lists for all users.

    python benchmarks/item_graph.py DATASET_FOLDER ... [--refit] [--protocol leave-one-out] [--recipe NAME]

Prints one JSON line for each data set.
"""

from __future__ import annotations

from pathlib import Path

import torch
from measure import Results, Stopwatch, parser

from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset
from nextitem.evaluation.evaluate import evaluate_lists, recommend_all
from nextitem.models.item_graph import ItemGraph, ItemGraphConfig
from nextitem.recipes import read_recipe


def main() -> None:
    options = parser(__doc__)
    options.add_argument("folders", type=Path, nargs="+")
    options.add_argument("--refit", action="store_true", help="learn from validation events too")
    options.add_argument("--protocol", default="leave-one-out")
    options.add_argument("--recipe", help="settings of the model, for example amazon14-sports/item-graph")
    arguments = options.parse_args()
    results = Results(arguments)
    for folder in arguments.folders:
        split = make_split(load_dataset(folder), arguments.protocol)
        train_data = split.refit() if arguments.refit else split.train
        settings = ItemGraphConfig()
        if arguments.recipe:
            fields = read_recipe(arguments.recipe)[1]["model"]
            settings = ItemGraphConfig(**{name: value for name, value in fields.items() if name != "name"})
        model = ItemGraph(settings, train_data.catalog)
        model.set_popularity(torch.from_numpy(train_data.interactions.item_counts()).float())
        with Stopwatch() as fit:
            model.fit(train_data)
        with Stopwatch() as lists:
            recommend_all(model, split.test, 10)
        metrics = evaluate_lists(model, split.test, train=train_data).metrics
        row = {
            "data": folder.name,
            "refit": arguments.refit,
            "recall@10": round(metrics["recall@10"], 4),
            "ndcg@10": round(metrics["ndcg@10"], 4),
            "fit_s": round(fit.seconds, 2),
            "all_users_s": round(lists.seconds, 2),
        }
        results.add_printed(folder.name, row)


if __name__ == "__main__":
    main()
