"""Lists of a session against the best items one by one: accuracy, and what customers of the simulated shop do.

    python benchmarks/session_lists.py --seeds 0 1 2
    python benchmarks/session_lists.py --set training.max_epochs=6 --also "published model.session_share=1"

Trains onerec on the shop item by item (`session_share = 0`) and session-wise, once for each seed, without a guide, and
each further variant of `--also`: its name, and settings. All variants have the same codes. Answers:

    list       the session-wise model's likeliest list
    its items  the best items of the same model's first slot
    items      the best items of the model that was trained item by item

For a sample of validation requests it prints recall@10 and NDCG@10, and by the truth of the shop the expected clicks
and purchases of a whole list (data/shop/list_truth.py) with its effects, the clicks without them, the number of
categories in a list, and the difference of the clicks from "items" with its 95% interval. `--test`: test requests.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Results, Stopwatch, parser
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.components import component_class
from nextitem.core.dataset import Dataset
from nextitem.core.recommender import Recommender
from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset
from nextitem.data.shop.list_truth import NO_EFFECTS, ListEffects, expected_clicks, expected_purchases
from nextitem.data.shop.shop import generate_shop
from nextitem.data.shop.truth import NUM_SLOTS, Floats, ShopTruth
from nextitem.evaluation.evaluate import recommend_all
from nextitem.evaluation.intervals import paired_difference
from nextitem.evaluation.metrics import accuracy
from nextitem.pipeline.options import FitOptions
from nextitem.pipeline.recipe import Recipe, resolve_recipe
from nextitem.pipeline.train import fit_model, with_requirements
from nextitem.recipes import read_recipe

ITEM_WISE = ["model.session_share=0", "model.generates=items"]


def train(data: Dataset, recipe: Recipe) -> tuple[Recommender, float]:
    """Return the trained model and the seconds of processor time that training took."""
    with tempfile.TemporaryDirectory() as folder, Stopwatch(time.process_time) as watch:
        options = FitOptions(Path(folder), device="cpu", progress=False, is_resumable=False)
        model, _ = fit_model(data, None, recipe, options)
    return model, watch.seconds


def truth_of(truth: ShopTruth, data: Dataset, requests: SequenceBatch, items: Tensor) -> dict[str, Floats]:
    """Return by name what each customer does with a list `items [B, K]`, on average, [B] each."""
    assert requests.user_ids is not None
    assert requests.request_times is not None
    people = data.users.numbers_of(requests.user_ids.numpy()) - 1
    times = requests.request_times.numpy() // 1000
    last = requests.items.last(1).to_padded(1).numpy()[:, 0] - 1  # -1: no event
    lists = items.numpy() - 1
    common: dict[str, Any] = {"last_items": last}
    categories = np.sort(np.where(lists >= 0, truth.category[lists], -1), axis=1)
    return {
        "clicks": expected_clicks(truth, people, lists, times, effects=ListEffects(), **common).sum(1),
        "purchases": expected_purchases(truth, people, lists, times, effects=ListEffects(), **common).sum(1),
        "clicks without effects": expected_clicks(truth, people, lists, times, effects=NO_EFFECTS, **common).sum(1),
        "categories": 1.0 + (np.diff(categories, axis=1) > 0).sum(1),
    }


def judge(model: Recommender, truth: ShopTruth, data: Dataset, requests: SequenceBatch) -> dict[str, Tensor]:
    """Return the figures of each request by name, [B] each."""
    assert requests.targets is not None
    answer = recommend_all(model, requests, 10, batch_size=128)
    figures = {
        "recall@10": accuracy.recall(answer, requests.targets, 10),
        "ndcg@10": accuracy.ndcg(answer, requests.targets, 10),
    }
    of_lists = truth_of(truth, data, requests, answer[:, :NUM_SLOTS])
    return figures | {name: torch.from_numpy(np.asarray(values, np.float64)) for name, values in of_lists.items()}


def main() -> None:
    options = parser(__doc__, requests=2000, threads=1)
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--set", dest="overrides", nargs="+", default=[], help="settings of all variants")
    options.add_argument("--test", action="store_true", help="judge by test requests")
    options.add_argument("--also", nargs="+", default=[], help='further variants: "NAME SETTING=VALUE ..."')
    arguments = options.parse_args()
    results = Results(arguments)
    torch.set_num_threads(arguments.threads)
    shop, dataset = generate_shop(), load_dataset("shop")
    source, table = read_recipe("default/onerec")
    means: dict[str, list[float]] = {}
    for seed in arguments.seeds:
        settings_of_run: dict[str, Any] = {"seed": seed, "data": {"path": "shop"}}
        layers: list[tuple[str, dict[str, Any]]] = [(source, table), ("the benchmark", settings_of_run)]
        common = ["model.guide=none", f"model.items_per_list={NUM_SLOTS}", "training.max_minutes=none"]
        common += arguments.overrides
        recipe = resolve_recipe(layers, overrides=common)
        split = make_split(dataset, recipe.data.protocol, seed=seed)
        requests = (split.test if arguments.test else split.validation).sample(arguments.requests)
        cls, config = component_class("model", recipe.model)
        with tempfile.TemporaryDirectory() as folder:
            data = with_requirements(split.train, recipe, cls.needs | config.needs, FitOptions(Path(folder)))
        others = {text.split()[0]: text.split()[1:] for text in arguments.also}
        variants = {"items": ITEM_WISE, "list": [], **others}
        figures: dict[str, dict[str, Tensor]] = {}
        seconds = {}
        for name, settings in variants.items():
            model, seconds[name] = train(data, resolve_recipe(layers, overrides=[*common, *settings]))
            figures[name] = judge(model, shop.truth, data, requests)
            if name == "list":
                model.config = model.config.model_copy(update={"generates": "items"})
                figures["its items"] = judge(model, shop.truth, data, requests)
        for name, values in figures.items():
            row: dict[str, object] = {"variant": name, "seed": seed}
            if name in seconds:
                row["train_cpu_seconds"] = round(seconds[name], 1)
            for metric, value in values.items():
                row[metric] = round(float(value.nanmean()), 4)
                means.setdefault(f"{name}, {metric}", []).append(float(value.nanmean()))
            gain = paired_difference(values["clicks"], figures["items"]["clicks"])
            row["clicks gained"] = [round(value, 4) for value in (gain.mean, gain.low, gain.high)]
            results.add_printed(f"{name}, seed {seed}", row)
    about = {"requests": requests.num_requests, "set": arguments.overrides}
    results.add_printed("means", {**about, **{name: round(statistics.mean(value), 4) for name, value in means.items()}})


if __name__ == "__main__":
    main()
