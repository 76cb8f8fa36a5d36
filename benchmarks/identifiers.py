"""Which identifiers does a generator learn best with? Other clusters, codebooks, an attribute first, relearned ones.

    python benchmarks/identifiers.py amazon14-beauty/depth-decoder DATASET_FOLDER [--epochs 5] [--seeds 0 1]
        [--only recipe "content only"] [--set model.dropout=0.3]

Each kind of identifiers differs from those of the recipe in one setting. All are trained for the same number of epochs,
without a guide, and judged on the validation requests over the full catalogue. Prints one JSON line for each kind and
seed: NDCG@10, recall@10, the same on requests whose target did not follow the last item in training
(`generalization`), seconds of the tokenizer and of training, and the difference in NDCG@10 to the first kind of the
same seed with its 95% interval (paired by request). Then the means over the seeds.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from pathlib import Path

import torch
from measure import Results, Stopwatch, parser

from nextitem.core.components import component_class
from nextitem.core.dataset import Dataset, Split
from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset
from nextitem.evaluation.evaluate import Evaluation, evaluate_lists
from nextitem.evaluation.intervals import paired_difference
from nextitem.pipeline.options import FitOptions, silent
from nextitem.pipeline.recipe import recipe_layers, resolve_recipe, run_arguments
from nextitem.pipeline.train import fit_model, with_requirements
from nextitem.recipes import read_recipe

METRICS = ("ndcg@10", "recall@10")


def kinds(num_items: int, attribute: str | None, epochs: int) -> dict[str, list[str]]:
    """Return the settings of each kind of identifiers that differ from the recipe's, by name."""

    def codebooks(*sizes: int) -> list[str]:
        last = math.ceil(num_items / math.prod(sizes))
        return [f"tokenizer.codebook_sizes={[*sizes, last]}"]

    cube = math.ceil(num_items ** (1 / 3))
    out = {
        "recipe": [],
        "content only": ["tokenizer.transition_weight=0"],
        "transitions only": ["tokenizer.content_weight=0"],
        "balance exposure": ["tokenizer.balance=exposure"],
        "balance plain": ["tokenizer.balance=plain"],
        "64 clusters": codebooks(64),
        "256 clusters": codebooks(256),
        "3 levels": codebooks(cube, cube),
        "3 unequal levels": codebooks(16, 32),
        "relearned once": [f"model.relearn_after={[max(1, epochs // 2)]}"],
        "relearned every epoch": [f"model.relearn_after={list(range(1, epochs))}"],
    }
    if attribute is not None:
        out["attribute first"] = [f"tokenizer.attribute={attribute}"]
        out["attribute first, relearned once"] = [*out["attribute first"], *out["relearned once"]]
        out["attribute first, relearned once"].append("model.relearn_below=1")
    return out


def judged(
    dataset: Dataset, split: Split, recipe_name: str, overrides: list[str], *, epochs: int, seed: int
) -> tuple[Evaluation, dict[str, object]]:
    """Return the validation figures of a model that is trained with these settings, with seconds and codebooks."""
    name = read_recipe(recipe_name)[1]["model"]["name"]
    arguments = run_arguments(
        name, dataset.name, protocol=split.protocol, refit=False, drop=False, seed=seed, ids=None, minutes=None
    )
    fixed = ["model.guide=none", f"training.max_epochs={epochs}", "training.patience=none"]
    layers = recipe_layers(name, recipe=recipe_name, arguments=arguments, settings=None)
    recipe = resolve_recipe(layers, overrides=[*fixed, *overrides])
    cls, config = component_class("model", recipe.model)
    with tempfile.TemporaryDirectory() as folder:
        options = FitOptions(Path(folder), device="cpu", resume=False, progress=False, log=silent)
        with Stopwatch() as tokenizing:
            train = with_requirements(split.train, recipe, cls.needs | config.needs, options)
        with Stopwatch() as training:
            model, _ = fit_model(train, None, recipe, options)
    table = model.identifiers
    assert table is not None
    figures: dict[str, object] = {"codebooks": list(table.codebook_sizes)}
    figures |= {"tokenizer_seconds": round(tokenizing.seconds, 1), "train_seconds": round(training.seconds, 1)}
    return evaluate_lists(model, split.validation, train=split.train), figures


def main() -> None:
    options = parser(__doc__, epochs=5)
    options.add_argument("recipe")
    options.add_argument("folder", type=Path)
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--only", nargs="+", help="these kinds alone; the first is the one to compare with")
    options.add_argument("--attribute", help="item feature that precedes codes; default: the first categorical one")
    options.add_argument("--set", dest="overrides", nargs="+", default=[], help="settings of all kinds")
    arguments = options.parse_args()
    results = Results(arguments)
    dataset = load_dataset(str(arguments.folder))
    split = make_split(dataset, read_recipe(arguments.recipe)[1].get("data", {}).get("protocol"))
    categorical = [column for column, kind in dataset.catalog.features.items() if kind.startswith("categorical")]
    attribute = arguments.attribute or next(iter(categorical), None)
    settings = kinds(dataset.catalog.num_items, attribute, arguments.epochs)
    names = arguments.only or list(settings)
    values: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for seed in arguments.seeds:
        first: Evaluation | None = None
        for name in names:
            evaluation, figures = judged(
                dataset,
                split,
                arguments.recipe,
                [*arguments.overrides, *settings[name]],
                epochs=arguments.epochs,
                seed=seed,
            )
            first = first or evaluation
            slice_figures = evaluation.slices.get("generalization", {})
            gain = paired_difference(evaluation.values["ndcg@10"], first.values["ndcg@10"])
            row: dict[str, object] = {"kind": name, "seed": seed, **figures}
            for metric in METRICS:
                row[metric] = round(evaluation.metrics[metric], 4)
                row[f"generalization {metric}"] = round(slice_figures.get(metric, 0.0), 4)
                values[name].setdefault(metric, []).append(evaluation.metrics[metric])
            row["gain"] = [round(part, 4) for part in (gain.mean, gain.low, gain.high)]
            results.add_printed(f"{name}, seed {seed}", row)
    about = {"data": arguments.folder.name, "recipe": arguments.recipe, "epochs": arguments.epochs}
    about |= {"set": arguments.overrides, "seeds": arguments.seeds, "threads": torch.get_num_threads()}
    for name in names:
        means = {metric: round(statistics.mean(figures), 4) for metric, figures in values[name].items()}
        spreads = {
            f"{metric} spread": round(max(figures) - min(figures), 4) for metric, figures in values[name].items()
        }
        results.add_printed(f"{name}, mean", {"kind": name, **about, **means, **spreads})


if __name__ == "__main__":
    main()
