"""A recipe over several seeds, with and without refit: mean, spread and seconds, through the Python door.

python benchmarks/seeds.py amazon14-beauty/sasrec DATASET_FOLDER [--seeds 0 1 2] [--refit] [--metrics recall@10 ndcg@10]
    [--set training.max_epochs=22]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch

import nextitem as ni
from nextitem.recipes import read_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--metrics", nargs="+", default=["recall@10", "ndcg@10"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--refit", action="store_true")
    parser.add_argument("--set", dest="overrides", nargs="+", default=[], help="settings that differ from the recipe's")
    arguments = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in (*arguments.metrics, "train_seconds")}
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
            for name, values in found.items():
                values.append(run.metrics[name] if name == "train_seconds" else run.metrics["metrics"][name])
            row = {name: round(values[-1], 4) for name, values in found.items()}
            print(
                json.dumps({"seed": seed, "refit": arguments.refit, "best_epoch": run.metrics["best_epoch"], **row}),
                flush=True,
            )
    summary: dict[str, float] = {}
    for name, values in found.items():
        summary[name] = round(statistics.mean(values), 4)
        summary[f"{name}_spread"] = round(max(values) - min(values), 4)
    told = {"data": arguments.folder.name, "recipe": arguments.recipe, "refit": arguments.refit}
    told["set"] = arguments.overrides
    print(json.dumps({**told, "threads": torch.get_num_threads(), **summary}))


if __name__ == "__main__":
    main()
