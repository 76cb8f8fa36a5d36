"""Two things that TIGER's paper shows of its lists: items that nothing was learnt of, and diversity by temperature.

    python benchmarks/tiger_lists.py cold DATASET_FOLDER [--recipe default/tiger] [--share 0.05] [--out RUN]
    python benchmarks/tiger_lists.py diversity RUN

`cold` (section 5.1 of arXiv 2305.05065) drops every event of a drawn share of the test items before training, but for
those that test, trains TIGER, and asks for ten items under epsilon: at most that share of a list is new, where scores
are high enough, or in places reserved for it. Recall@10 of cold and warm targets and their harmonic mean, and over both
as they come; beside it, the items whose content is nearest to the last item's. `diversity` (section 5.2) draws lists
from a run at a temperature of all levels, or of the first alone: entropy in nats of the categories of the 10, 20 and 50
items, and recall@10. A category is the value of the first categorical column; of a column of lists, that of an item's
values which most items have. Leave-one-out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import nextitem as ni
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.top_items import top_items
from nextitem.data.protocols import make_split
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.sampling import Sampling
from nextitem.evaluation.evaluate import recommend_all
from nextitem.evaluation.metrics import accuracy
from nextitem.models.tiger import Tiger
from nextitem.pipeline.runs import load_run

EPSILONS = (None, 0.0, 0.1, 0.2, 0.3, 0.5, 1.0)
TEMPERATURES = ((1.0,), (1.5,), (2.0,), (1.5, 1.0), (2.0, 1.0), (1.0, 2.0))


def without_items(dataset: Dataset, share: float, seed: int) -> Dataset:
    """The data set without the events of a share of the test items, but for those that test."""
    log = dataset.interactions
    last = np.zeros(len(log), dtype=np.bool_)
    last[log.offsets[1:][log.offsets[1:] > log.offsets[:-1]] - 1] = True
    items = np.unique(log.item_ids[last])
    drawn = np.random.default_rng(seed).choice(items, round(share * len(items)), replace=False)
    return dataset.with_interactions(log.select(last | ~np.isin(log.item_ids, drawn)))


def nearest(content: Tensor, requests: SequenceBatch, k: int) -> Tensor:
    """The items whose content is nearest to that of the last item, by cosine, [B, k]."""
    unit = torch.nn.functional.normalize(content, dim=1)
    lists = []
    for part in requests.split(512):
        last = part.items.values[part.items.offsets[1:] - 1]
        lists.append(top_items(unit[last] @ unit.T, part, k).item_ids)
    return torch.cat(lists)


def cold(options: argparse.Namespace) -> None:
    dataset = without_items(ni.load_dataset(options.data), options.share, options.seed)
    limit = [] if options.minutes is None else [f"training.max_minutes={options.minutes}"]
    with tempfile.TemporaryDirectory() as folder:
        run = ni.train(
            "tiger",
            dataset,
            out=options.out or Path(folder) / "run",
            recipe=options.recipe,
            protocol="leave-one-out",
            seed=options.seed,
            overrides=[*limit, *options.overrides],
            progress=False,
        )
    model, test = run.model, make_split(dataset, "leave-one-out", seed=options.seed).test
    assert isinstance(model, Tiger)
    assert test.targets is not None
    test = test.select((test.items.lengths > 0).nonzero()[:, 0])
    assert test.targets is not None
    new = model.popularity == 0
    is_cold = new[test.targets.values]
    slices = {"cold": is_cold.nonzero()[:, 0], "warm": (~is_cold).nonzero()[:, 0]}
    share = len(slices["cold"]) / len(is_cold)
    told = {"data": dataset.name, "cold_requests": len(slices["cold"]), "new_items": int(new[1:].sum())}
    print(json.dumps({**told, "best_epoch": run.metrics["best_epoch"], "minutes": run.metrics["train_seconds"] / 60}))
    picked = {name: rows[:: max(1, len(rows) // options.requests)] for name, rows in slices.items()}
    asked = {name: test.select(rows) for name, rows in picked.items()}
    content = model.catalog.content
    reserved = [("reserved", epsilon) for epsilon in EPSILONS if epsilon]
    for places, epsilon in [*(("capped", epsilon) for epsilon in EPSILONS), *reserved, ("", "nearest content")]:
        found = {}
        if not isinstance(epsilon, str):
            settings = {"new_items": epsilon, "new_items_reserved": places == "reserved"}
            model.settings = model.settings.model_copy(update=settings)
        for name, part in asked.items():
            if isinstance(epsilon, str):
                assert content is not None
                lists = nearest(content, part, 10)
            else:
                lists = recommend_all(model, part, 10, batch_size=128)
            assert part.targets is not None
            found[name] = float(accuracy.recall(lists, part.targets, 10).nanmean())
        both = found["cold"] + found["warm"]
        row = {
            "epsilon": "any" if epsilon is None else epsilon,
            "places": places,
            **found,
            "harmonic": 2 * found["cold"] * found["warm"] / both if both else 0.0,
            "all": share * found["cold"] + (1 - share) * found["warm"],
        }
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


def categories(catalog: Catalog) -> Tensor:
    """The category of each item as a number, [N + 1]."""
    kinds = catalog.features.items()
    column = next(name for name, kind in kinds if kind in ("categorical", "categorical-list"))
    values = [value if isinstance(value, list) else [value] for value in catalog.table[column].to_list()]
    counts = Counter(part for value in values for part in value)
    chosen = [max(value, key=lambda part: counts[part]) if value else "" for value in values]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(chosen))}
    return torch.tensor([0, *(numbers[name] for name in chosen)])


def entropy(lists: Tensor, category: Tensor, k: int) -> float:
    """Mean over requests of the entropy of the categories among the first k items, in nats."""
    found = []
    for row in lists[:, :k].tolist():
        counts = np.array(list(Counter(category[item].item() for item in row if item).values()), dtype=float)
        shares = counts / counts.sum()
        found.append(float(-(shares * np.log(shares)).sum()))
    return float(np.mean(found))


def diversity(options: argparse.Namespace) -> None:
    run = load_run(options.data)
    model = run.model
    assert isinstance(model, Tiger), f"{options.data} is not a run of tiger"
    test = make_split(run.dataset, run.recipe.data.protocol, seed=run.recipe.seed).test
    test = test.select(torch.linspace(0, test.num_requests - 1, options.requests).long())
    category = categories(model.catalog)
    print(json.dumps({"run": str(options.data), "requests": test.num_requests, "categories": int(category.max()) + 1}))
    for temperatures in (None, *TEMPERATURES):
        began = time.perf_counter()
        draw = torch.Generator().manual_seed(options.seed)
        sampling = None if temperatures is None else Sampling(draw, temperatures)
        parts = [
            beam_search(model, part, model.trie, k=50, beam_width=50, sampling=sampling).item_ids
            for part in test.split(128)
        ]
        lists = torch.cat(parts)
        assert test.targets is not None
        row = {f"entropy@{k}": round(entropy(lists, category, k), 3) for k in (10, 20, 50)}
        row["recall@10"] = round(float(accuracy.recall(lists, test.targets, 10).nanmean()), 4)
        told = {"temperatures": "likeliest, not drawn" if temperatures is None else temperatures}
        print(json.dumps({**told, **row, "seconds": round(time.perf_counter() - began)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["cold", "diversity"])
    parser.add_argument("data", help="cold: a data set's folder; diversity: a run of tiger")
    parser.add_argument("--recipe", default="default/tiger")
    parser.add_argument("--minutes", type=float, help="of training, in place of the recipe's own limit")
    parser.add_argument("--set", dest="overrides", nargs="+", default=[])
    parser.add_argument("--out", help="cold: keep the run here")
    parser.add_argument("--share", type=float, default=0.05, help="of the test items, which nothing is learnt of")
    parser.add_argument("--requests", type=int, default=1000, help="asked, of each slice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    {"cold": cold, "diversity": diversity}[options.what](options)


if __name__ == "__main__":
    main()
