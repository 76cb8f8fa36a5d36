"""Recall of items without a training event, and what their handling costs the other items.

    python benchmarks/cold_items.py DATASET_FOLDER [--recipe amazon14-beauty/depth-decoder] [--share 0.05]
        [--variant cold model.content_at_leaves=true model.id_dropout=0.2] [--others content-neighbours item-graph]
        [--set content.dim=512] [--set-others content.dim=512] [--judge-on validation] [--seeds 0 1 2]

Drops every event of a random share of the items from the histories, except each user's last event, and trains on the
rest by leave-one-out. A request is cold if its target was dropped. All items compete in one list. The recipe is trained
as it is ("plain") and with the settings of each --variant; --others are trained with their default recipes. `--set`
changes plain and the variants, `--set-others` the others.
`--judge-on validation` first removes each user's last event, so that settings are chosen without test events. Prints
recall@10 and NDCG@10 of cold and warm requests for each, the paired interval of the cold recall against the first of
--others, and the ratio of the warm figures to those of "plain".
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from measure import Results, parser
from torch import Tensor

import nextitem as ni
from nextitem.core.dataset import Dataset
from nextitem.core.interactions import Interactions
from nextitem.core.recommender import Recommender
from nextitem.data.protocols import make_split
from nextitem.evaluation.evaluate import recommend_all
from nextitem.evaluation.intervals import paired_difference
from nextitem.evaluation.metrics import accuracy
from nextitem.recipes import read_recipe

METRICS = {"recall@10": accuracy.recall, "ndcg@10": accuracy.ndcg}


def is_last_event(log: Interactions) -> np.ndarray:
    """Return whether an event is the last of its user, bool."""
    is_last = np.zeros(len(log), dtype=np.bool_)
    is_last[log.offsets[1:][log.offsets[1:] > log.offsets[:-1]] - 1] = True
    return is_last


def without_items(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Return the data set without the events of a random share of the items, except the last event of each user."""
    log = dataset.interactions
    items = np.unique(log.item_ids)
    cold_items = np.random.default_rng(seed).choice(items, round(share * len(items)), replace=False)
    return dataset.with_interactions(log.select(is_last_event(log) | ~np.isin(log.item_ids, cold_items)))


def judge(model: Recommender, dataset: Dataset, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return the metrics of each test request with a history, [R] each, and whether its target is cold, bool [R]."""
    test = make_split(dataset, "leave-one-out", seed=seed).test
    test = test.select((test.items.lengths > 0).nonzero()[:, 0])
    assert test.targets is not None
    lists = recommend_all(model, test, 10)
    is_cold = model.popularity[test.targets.values] == 0
    return {name: metric(lists, test.targets, 10) for name, metric in METRICS.items()}, is_cold


def main() -> None:
    options = parser(__doc__, threads=2)
    options.add_argument("folder")
    options.add_argument("--recipe", default="amazon14-beauty/depth-decoder")
    options.add_argument("--share", type=float, default=0.05, help="share of the items that are dropped from training")
    options.add_argument(
        "--variant",
        dest="variants",
        nargs="+",
        action="append",
        default=[],
        metavar="NAME SETTING",
        help="a name, and settings that differ from the recipe",
    )
    options.add_argument("--others", nargs="*", default=["content-neighbours", "item-graph"])
    options.add_argument("--judge-on", choices=["test", "validation"], default="test")
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--set", dest="overrides", nargs="+", default=[], help="settings of plain and all variants")
    options.add_argument("--set-others", nargs="+", default=[], help="settings of all --others")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    results = Results(arguments)
    whole = ni.load_dataset(arguments.folder)
    if arguments.judge_on == "validation":
        whole = whole.with_interactions(whole.interactions.select(~is_last_event(whole.interactions)))
    model_name = read_recipe(arguments.recipe)[1]["model"]["name"]
    works: dict[str, tuple[str, str | None, list[str]]] = {
        name: (name, None, arguments.set_others) for name in arguments.others
    }
    works["plain"] = (model_name, arguments.recipe, arguments.overrides)
    for name, *settings in arguments.variants:
        works[name] = (model_name, arguments.recipe, [*arguments.overrides, *settings])
    for seed in arguments.seeds:
        dataset = without_items(whole, arguments.share, seed)
        values: dict[str, dict[str, Tensor]] = {}
        means: dict[str, dict[str, float]] = {}
        for name, (model, recipe, settings) in works.items():
            with tempfile.TemporaryDirectory() as folder:
                run = ni.train(
                    model,
                    dataset,
                    out=Path(folder) / "run",
                    recipe=recipe,
                    protocol="leave-one-out",
                    seed=seed,
                    overrides=settings,
                    progress=False,
                )
                values[name], is_cold = judge(run.model, dataset, seed)
            slices = {"cold": is_cold, "warm": ~is_cold}
            means[name] = {
                f"{part} {metric}": float(figures[rows].nanmean())
                for part, rows in slices.items()
                for metric, figures in values[name].items()
            }
            row: dict[str, object] = {"what": name, "seed": seed, "cold_requests": int(is_cold.sum())}
            row |= {metric: round(value, 4) for metric, value in means[name].items()}
            row["all recall@10"] = round(float(values[name]["recall@10"].nanmean()), 4)
            if arguments.others and name != arguments.others[0]:
                first = values[arguments.others[0]]["recall@10"][is_cold]
                gain = paired_difference(values[name]["recall@10"][is_cold], first)
                row["cold gain"] = [round(part, 4) for part in (gain.mean, gain.low, gain.high)]
            if name not in ("plain", *arguments.others):
                warm = {metric: f"warm {metric}" for metric in METRICS}
                row |= {f"{part} ratio": round(means[name][part] / means["plain"][part], 3) for part in warm.values()}
            row["train_minutes"] = round(run.metrics.get("train_seconds", 0) / 60, 2)
            results.add_printed(f"{name}, seed {seed}", row)


if __name__ == "__main__":
    main()
