"""Recall@10 and @200 of retrieval channels on the same requests, and how far each is above the first.

    python benchmarks/retrieval_recall.py DATASET_FOLDER|shop [--models item-cf two-tower] [--protocol time]
        [--seeds 0] [--ks 10 200] [--set two-tower:training.max_epochs=3]

Trains the default recipe of each model and evaluates it on test. Prints one JSON line for each model and seed. Lines of
later models contain the 95% bootstrap interval of the difference to the first one, over the same requests.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from measure import Results, parser
from torch import Tensor

import nextitem as ni
from nextitem.data.protocols import make_split
from nextitem.evaluation.evaluate import evaluate_lists
from nextitem.evaluation.intervals import interval


def main() -> None:
    options = parser(__doc__)
    options.add_argument("folder")
    options.add_argument("--models", nargs="+", default=["item-cf", "two-tower"])
    options.add_argument("--protocol", default="time")
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--ks", type=int, nargs="+", default=[10, 200])
    options.add_argument("--set", dest="own", nargs="+", default=[], metavar="MODEL:SETTING")
    arguments = options.parse_args()
    results = Results(arguments)
    split = make_split(ni.load_dataset(arguments.folder), arguments.protocol)
    names = [f"recall@{k}" for k in arguments.ks]
    first: dict[str, Tensor] = {}
    for model in arguments.models:
        overrides = [part.partition(":")[2] for part in arguments.own if part.partition(":")[0] == model]
        for seed in arguments.seeds:
            with tempfile.TemporaryDirectory() as folder:
                run = ni.train(
                    model,
                    arguments.folder,
                    out=Path(folder) / "run",
                    protocol=arguments.protocol,
                    seed=seed,
                    overrides=overrides,
                    progress=False,
                )
            evaluation = evaluate_lists(run.model, split.test, train=split.train, ks=arguments.ks)
            row = {name: round(evaluation.metrics[name], 4) for name in names}
            seconds, epoch = run.metrics["train_seconds"], run.metrics["best_epoch"]
            cold = evaluation.slices.get("cold", {})
            line = {"model": model, "seed": seed, **row, "cold": cold, "train_seconds": seconds, "best_epoch": epoch}
            if first:
                for name in names:
                    low, high = interval(evaluation.values[name] - first[name])
                    line[f"{name} above {arguments.models[0]}"] = [round(low, 4), round(high, 4)]
            results.add_printed(f"{model}, seed {seed}", {**line, "threads": torch.get_num_threads()})
        first = first or {name: evaluation.values[name] for name in names}


if __name__ == "__main__":
    main()
