"""What the loss of prefixes (APAO), or any other setting of training, changes at each beam width, on validation.

    python benchmarks/prefix_loss.py amazon14-beauty/depth-decoder DATASET_FOLDER --weights 0 0.2 0.4
    python benchmarks/prefix_loss.py amazon14-beauty/tiger-small DATASET_FOLDER --weights 0 0.3 --requests 4000
        --set training.max_epochs=6 --also "training.optimizer=muon training.learning_rate=5e-3"

Trains the recipe's model without a guide, once for each seed and variant: with the loss of prefixes at each of the
`--weights` (0: without it), then with the settings of each `--also`. All variants have the same codes. Nothing is
selected during training: the last weights count. Prints one JSON line for each model: seconds of training, final
weights of the prefixes, recall@10 and NDCG@10 of the validation requests at each beam width, and the difference of
NDCG@10 from the first variant of the same seed, with its 95% interval over the requests. Then means over the seeds.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import Results, Stopwatch, parser
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.components import component_class
from nextitem.core.dataset import Dataset
from nextitem.core.recommender import Recommender
from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset
from nextitem.evaluation.evaluate import recommend_all
from nextitem.evaluation.intervals import paired_difference
from nextitem.evaluation.metrics import accuracy
from nextitem.losses.prefix_loss import PrefixLoss
from nextitem.pipeline.options import FitOptions
from nextitem.pipeline.recipe import Recipe, resolve_recipe
from nextitem.pipeline.train import fit_model, with_requirements
from nextitem.recipes import read_recipe


def variants_of(weights: list[float], rate: float, others: list[str]) -> dict[str, list[str]]:
    """Return the settings of each variant, by its name."""
    variants = {
        f"prefixes {weight:g}": [f"model.prefix_loss.weight={weight}", f"model.prefix_loss.rate={rate}"]
        if weight
        else ["model.prefix_loss=none"]
        for weight in weights
    }
    return variants | {settings: settings.split() for settings in others}


def judge(model: Recommender, requests: SequenceBatch, width: int) -> tuple[Tensor, Tensor]:
    """Return recall@10 and NDCG@10 of each request at a beam width, [B] each."""
    assert requests.targets is not None
    config = model.config
    model.config = config.model_copy(update={"beam_width": width})
    lists = recommend_all(model, requests, 10, batch_size=128)
    model.config = config
    return accuracy.recall(lists, requests.targets, 10), accuracy.ndcg(lists, requests.targets, 10)


def train(data: Dataset, recipe: Recipe) -> tuple[Recommender, dict[str, object]]:
    """Return the trained model, the seconds that training took, and the final weights of the prefixes."""
    with tempfile.TemporaryDirectory() as folder, Stopwatch() as watch:
        options = FitOptions(Path(folder), device="cpu", progress=False, is_resumable=False)
        model, _ = fit_model(data, None, recipe, options)
    row: dict[str, object] = {"train_seconds": round(watch.seconds, 1)}
    for part in model.modules():
        if isinstance(part, PrefixLoss):
            row["prefix_weights"] = [round(float(weight), 4) for weight in part.weights]
    return model, row


def main() -> None:
    options = parser(__doc__, requests=0, threads=1)
    options.add_argument("recipe")
    options.add_argument("folder")
    options.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.2, 0.4], help="0: without the loss")
    options.add_argument("--rate", type=float, default=0.01, help="of the weights of the prefixes")
    options.add_argument("--also", nargs="+", default=[], help='further variants: "SETTING=VALUE SETTING=VALUE"')
    options.add_argument("--widths", type=int, nargs="+", default=[10, 20, 50, 100])
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--set", dest="overrides", nargs="+", default=[], help="settings of all variants")
    arguments = options.parse_args()
    results = Results(arguments)
    torch.set_num_threads(arguments.threads)
    dataset = load_dataset(arguments.folder)
    source, table = read_recipe(arguments.recipe)
    figures: dict[str, list[float]] = {}
    for seed in arguments.seeds:
        layers: list[tuple[str, dict[str, Any]]] = [(source, table), ("the benchmark", {"seed": seed})]
        layers.append(("the benchmark", {"data": {"path": arguments.folder}}))
        common = ["model.guide=none", *arguments.overrides]
        recipe = resolve_recipe(layers, overrides=common)
        split = make_split(dataset, recipe.data.protocol, seed=seed)
        requests = split.validation.sample(arguments.requests) if arguments.requests else split.validation
        cls, config = component_class("model", recipe.model)
        with tempfile.TemporaryDirectory() as folder:
            data = with_requirements(split.train, recipe, cls.needs | config.needs, FitOptions(Path(folder)))
        first: dict[int, Tensor] = {}
        for name, settings in variants_of(arguments.weights, arguments.rate, arguments.also).items():
            model, row = train(data, resolve_recipe(layers, overrides=[*common, *settings]))
            for width in arguments.widths:
                recall, ndcg = judge(model, requests, width)
                pair = [float(recall.nanmean()), float(ndcg.nanmean())]
                for metric, value in zip(("recall@10", "ndcg@10"), pair, strict=True):
                    figures.setdefault(f"{name}, beam {width}, {metric}", []).append(value)
                row[f"beam {width}"] = [round(value, 4) for value in pair]
                gain = paired_difference(ndcg, first.setdefault(width, ndcg))
                row[f"gain {width}"] = [round(value, 4) for value in (gain.mean, gain.low, gain.high)]
            results.add_printed(f"{name}, seed {seed}", {"variant": name, "seed": seed, **row})
    about = {"recipe": arguments.recipe, "requests": requests.num_requests, "set": arguments.overrides}
    means = {name: round(statistics.mean(values), 4) for name, values in figures.items()}
    results.add_printed("means", {**about, **means})


if __name__ == "__main__":
    main()
