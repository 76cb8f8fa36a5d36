"""A recipe over several seeds, with and without refit: mean, spread and seconds of its metrics.

    python benchmarks/seeds.py amazon14-beauty/sasrec DATASET_FOLDER [--seeds 0 1 2] [--refit]
        [--metrics recall@10 ndcg@10] [--set training.max_epochs=22]

Trains through `nextitem.train`. Prints one JSON line for each seed, then the means and the spreads (largest minus
smallest).
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch
from measure import Results, parser

import nextitem as ni
from nextitem.recipes import read_recipe


def main() -> None:
    options = parser(__doc__)
    options.add_argument("recipe")
    options.add_argument("folder", type=Path)
    options.add_argument("--metrics", nargs="+", default=["recall@10", "ndcg@10"])
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--refit", action="store_true")
    options.add_argument(
        "--set", dest="overrides", nargs="+", default=[], help="settings that differ from the recipe's"
    )
    arguments = options.parse_args()
    results = Results(arguments)
    values_of: dict[str, list[float]] = {name: [] for name in (*arguments.metrics, "train_seconds")}
    model = read_recipe(arguments.recipe)[1]["model"]["name"]
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            run = ni.train(
                model,
                arguments.folder,
                out=Path(folder) / str(seed),
                recipe=arguments.recipe,
                refit=arguments.refit,
                seed=seed,
                overrides=arguments.overrides,
                progress=False,
            )
            for name, values in values_of.items():
                values.append(run.metrics[name] if name == "train_seconds" else run.metrics["metrics"][name])
            row = {name: round(values[-1], 4) for name, values in values_of.items()}
            best_epoch = run.metrics["best_epoch"]
            results.add_printed(
                f"seed {seed}", {"seed": seed, "refit": arguments.refit, "best_epoch": best_epoch, **row}
            )
    summary: dict[str, float] = {}
    for name, values in values_of.items():
        summary[name] = round(statistics.mean(values), 4)
        summary[f"{name}_spread"] = round(max(values) - min(values), 4)
    about = {"data": arguments.folder.name, "recipe": arguments.recipe, "refit": arguments.refit}
    about |= {"set": arguments.overrides, "threads": torch.get_num_threads()}
    results.add_printed("mean and spread", {**about, **summary})


if __name__ == "__main__":
    main()
