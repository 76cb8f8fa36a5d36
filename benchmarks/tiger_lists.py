"""Recall of items that TIGER has not seen in training, and diversity of its lists by temperature, as in its paper.

    python benchmarks/tiger_lists.py cold DATASET_FOLDER [--recipe default/tiger] [--share 0.05] [--out RUN]
    python benchmarks/tiger_lists.py diversity RUN

`cold` (section 5.1 of arXiv 2305.05065) drops every event of a random share of the test items before training, except
the test events, and trains TIGER. Its lists of ten follow epsilon: at most that share of a list is new, if scores are
high enough, or in places reserved for it. Prints recall@10 of cold and warm targets, their harmonic mean, and recall@10
over all targets; for comparison, lists of the items whose content is nearest to the last item's.

`diversity` (section 5.2) samples lists from a run at a temperature of all levels, or of the first alone. Prints entropy
in nats of the categories of the 10, 20 and 50 items, and recall@10. A category is the value of the first categorical
column; of a column of lists, that of an item's values which most items have. Leave-one-out.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from measure import Results, Stopwatch, parser
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
    """Return the data set without the events of a share of the test items, except the test events."""
    log = dataset.interactions
    last = np.zeros(len(log), dtype=np.bool_)
    last[log.offsets[1:][log.offsets[1:] > log.offsets[:-1]] - 1] = True
    items = np.unique(log.item_ids[last])
    cold_items = np.random.default_rng(seed).choice(items, round(share * len(items)), replace=False)
    return dataset.with_interactions(log.select(last | ~np.isin(log.item_ids, cold_items)))


def nearest(content: Tensor, requests: SequenceBatch, k: int) -> Tensor:
    """Return the items whose content is nearest to that of the last item, by cosine, [B, k]."""
    unit = torch.nn.functional.normalize(content, dim=1)
    lists = []
    for part in requests.split(512):
        last = part.items.values[part.items.offsets[1:] - 1]
        lists.append(top_items(unit[last] @ unit.T, part, k).item_ids)
    return torch.cat(lists)


def cold(arguments: argparse.Namespace, results: Results) -> None:
    """Train without the events of some items, and print recall by epsilon."""
    dataset = without_items(ni.load_dataset(arguments.data), arguments.share, arguments.seed)
    limit = [] if arguments.minutes is None else [f"training.max_minutes={arguments.minutes}"]
    with tempfile.TemporaryDirectory() as folder:
        run = ni.train(
            "tiger",
            dataset,
            out=arguments.out or Path(folder) / "run",
            recipe=arguments.recipe,
            protocol="leave-one-out",
            seed=arguments.seed,
            overrides=[*limit, *arguments.overrides],
            progress=False,
        )
    model, test = run.model, make_split(dataset, "leave-one-out", seed=arguments.seed).test
    assert isinstance(model, Tiger)
    assert test.targets is not None
    test = test.select((test.items.lengths > 0).nonzero()[:, 0])
    assert test.targets is not None
    new = model.popularity == 0
    is_cold = new[test.targets.values]
    slices = {"cold": is_cold.nonzero()[:, 0], "warm": (~is_cold).nonzero()[:, 0]}
    share = len(slices["cold"]) / len(is_cold)
    about = {"data": dataset.name, "cold_requests": len(slices["cold"]), "new_items": int(new[1:].sum())}
    training = {"best_epoch": run.metrics["best_epoch"], "minutes": run.metrics["train_seconds"] / 60}
    results.add_printed("training", {**about, **training})
    sample = {name: rows[:: max(1, len(rows) // arguments.requests)] for name, rows in slices.items()}
    requests = {name: test.select(rows) for name, rows in sample.items()}
    content = model.catalog.content
    reserved = [("reserved", epsilon) for epsilon in EPSILONS if epsilon]
    for places, epsilon in [*(("capped", epsilon) for epsilon in EPSILONS), *reserved, ("", "nearest content")]:
        recalls = {}
        if not isinstance(epsilon, str):
            settings = {"new_items": epsilon, "new_items_reserved": places == "reserved"}
            model.config = model.config.model_copy(update=settings)
        for name, part in requests.items():
            if isinstance(epsilon, str):
                assert content is not None
                lists = nearest(content, part, 10)
            else:
                lists = recommend_all(model, part, 10, batch_size=128)
            assert part.targets is not None
            recalls[name] = float(accuracy.recall(lists, part.targets, 10).nanmean())
        both = recalls["cold"] + recalls["warm"]
        row: dict[str, object] = {
            "epsilon": "any" if epsilon is None else epsilon,
            "places": places,
            **recalls,
            "harmonic": 2 * recalls["cold"] * recalls["warm"] / both if both else 0.0,
            "all": share * recalls["cold"] + (1 - share) * recalls["warm"],
        }
        rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
        results.add_printed(f"epsilon {row['epsilon']} {places}".strip(), rounded)


def categories(catalog: Catalog) -> Tensor:
    """Return the category of each item as a number, [N + 1]."""
    kinds = catalog.features.items()
    column = next(name for name, kind in kinds if kind in ("categorical", "categorical-list"))
    values = [value if isinstance(value, list) else [value] for value in catalog.table[column].to_list()]
    counts = Counter(part for value in values for part in value)
    labels = [max(value, key=lambda part: counts[part]) if value else "" for value in values]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(labels))}
    return torch.tensor([0, *(numbers[name] for name in labels)])


def entropy(lists: Tensor, category: Tensor, k: int) -> float:
    """Return the mean over requests of the entropy of the categories among the first k items, in nats."""
    entropies = []
    for row in lists[:, :k].tolist():
        counts = np.array(list(Counter(category[item].item() for item in row if item).values()), dtype=float)
        shares = counts / counts.sum()
        entropies.append(float(-(shares * np.log(shares)).sum()))
    return float(np.mean(entropies))


def diversity(arguments: argparse.Namespace, results: Results) -> None:
    """Print entropy and recall of a run's lists by temperature."""
    run = load_run(arguments.data)
    model = run.model
    assert isinstance(model, Tiger), f"{arguments.data} is not a run of tiger"
    test = make_split(run.dataset, run.recipe.data.protocol, seed=run.recipe.seed).test
    test = test.select(torch.linspace(0, test.num_requests - 1, arguments.requests).long())
    category = categories(model.catalog)
    sizes = {"requests": test.num_requests, "categories": int(category.max()) + 1}
    results.add_printed("run", {"run": str(arguments.data), **sizes})
    for temperatures in (None, *TEMPERATURES):
        draw = torch.Generator().manual_seed(arguments.seed)
        sampling = None if temperatures is None else Sampling(draw, temperatures)
        with Stopwatch() as watch:
            parts = [
                beam_search(model, part, model.trie, k=50, beam_width=50, sampling=sampling).item_ids
                for part in test.split(128)
            ]
        lists = torch.cat(parts)
        assert test.targets is not None
        row = {f"entropy@{k}": round(entropy(lists, category, k), 3) for k in (10, 20, 50)}
        row["recall@10"] = round(float(accuracy.recall(lists, test.targets, 10).nanmean()), 4)
        about = {"temperatures": "likeliest, not drawn" if temperatures is None else temperatures}
        results.add_printed(f"temperatures {about['temperatures']}", {**about, **row, "seconds": round(watch.seconds)})


def main() -> None:
    options = parser(__doc__, requests=1000, seed=0, threads=2)
    options.add_argument("what", choices=["cold", "diversity"])
    options.add_argument("data", help="cold: a data set's folder; diversity: a run of tiger")
    options.add_argument("--recipe", default="default/tiger")
    options.add_argument("--minutes", type=float, help="of training, in place of the recipe's own limit")
    options.add_argument("--set", dest="overrides", nargs="+", default=[])
    options.add_argument("--out", help="cold: keep the run here")
    options.add_argument(
        "--share", type=float, default=0.05, help="share of the test items that are dropped from training"
    )
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    {"cold": cold, "diversity": diversity}[arguments.what](arguments, Results(arguments))


if __name__ == "__main__":
    main()
