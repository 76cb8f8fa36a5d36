"""Retrieval channels beside each other: how many next items are among the first 10 and 200, and by how much more.

    python benchmarks/retrieval_recall.py DATASET_FOLDER|shop [--models item-cf two-tower] [--protocol time]
        [--seeds 0] [--ks 10 200] [--set two-tower:training.max_epochs=3]

Each model's default recipe is trained and judged on test. The last lines say by how much each later model is above the
first, with a 95% bootstrap interval over the same requests.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor

import nextitem as ni
from nextitem.data.protocols import make_split
from nextitem.evaluation.evaluate import evaluate_lists
from nextitem.evaluation.intervals import interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--models", nargs="+", default=["item-cf", "two-tower"])
    parser.add_argument("--protocol", default="time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ks", type=int, nargs="+", default=[10, 200])
    parser.add_argument("--set", dest="own", nargs="+", default=[], metavar="MODEL:SETTING")
    chosen = parser.parse_args()
    split = make_split(ni.load_dataset(chosen.folder), chosen.protocol)
    names = [f"recall@{k}" for k in chosen.ks]
    first: dict[str, Tensor] = {}
    for model in chosen.models:
        overrides = [part.partition(":")[2] for part in chosen.own if part.partition(":")[0] == model]
        for seed in chosen.seeds:
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder) / "run"
                told = {"protocol": chosen.protocol, "seed": seed, "overrides": overrides, "progress": False}
                run = ni.train(model, chosen.folder, out=place, **told)
            figures = evaluate_lists(run.model, split.test, train=split.train, ks=chosen.ks)
            row = {name: round(figures.metrics[name], 4) for name in names}
            seconds, epoch = run.metrics["train_seconds"], run.metrics["best_epoch"]
            cold = figures.slices.get("cold", {})
            line = {"model": model, "seed": seed, **row, "cold": cold, "train_seconds": seconds, "best_epoch": epoch}
            if first:
                for name in names:
                    low, high = interval(figures.values[name] - first[name])
                    line[f"{name} above {chosen.models[0]}"] = [round(low, 4), round(high, 4)]
            print(json.dumps({**line, "threads": torch.get_num_threads()}), flush=True)
        first = first or {name: figures.values[name] for name in names}


if __name__ == "__main__":
    main()
