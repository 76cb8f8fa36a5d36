"""Every retrieval channel on one data set: what its lists hold, and what one request costs.

    python benchmarks/channels.py shop|DATASET_FOLDER [--protocol time] [--channels user-cf,swing] [--validation]

Prints one line a channel: recall@10, @50 and @200 over the test requests (with --validation: those that settings are
chosen on), seconds of training, and the milliseconds of one request alone (k 200, median and 99th percentile).
Settings are those of the default recipe; --set neighbours=50 changes one. A folder among --channels is that of a run,
such as one of two-tower.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

PARSER = argparse.ArgumentParser(description=__doc__.splitlines()[0])
PARSER.add_argument("data")
PARSER.add_argument("--protocol", default=None)
PARSER.add_argument(
    "--channels",
    default="popularity,item-cf,user-cf,swing,matrix-factorisation,content-neighbours,new-items,geo-popularity",
)
PARSER.add_argument("--threads", type=int, default=2)
PARSER.add_argument("--seed", type=int, default=0)
PARSER.add_argument("--validation", action="store_true")
PARSER.add_argument("--set", action="append", default=[])
ARGUMENTS = PARSER.parse_args()
os.environ["OMP_NUM_THREADS"] = str(ARGUMENTS.threads)

import torch  # noqa: E402

from nextitem.core.components import build_component, component_class  # noqa: E402
from nextitem.core.dataset import Split  # noqa: E402
from nextitem.core.recommender import Recommender  # noqa: E402
from nextitem.data.protocols import make_split  # noqa: E402
from nextitem.data.readers import load_dataset  # noqa: E402
from nextitem.evaluation.evaluate import latency, recommend_all  # noqa: E402
from nextitem.evaluation.metrics.accuracy import recall  # noqa: E402
from nextitem.pipeline.recipe import resolve_recipe  # noqa: E402
from nextitem.pipeline.runs import load_run  # noqa: E402
from nextitem.pipeline.tokenize import with_content  # noqa: E402
from nextitem.recipes import default_recipe  # noqa: E402

KS = (10, 50, 200)


def trained(name: str, split: Split) -> Recommender:
    """The channel of that name fitted to the split, or that of a run's folder."""
    if Path(name).is_dir():
        return load_run(name).model
    overrides = [f"model.{setting}" for setting in ARGUMENTS.set]
    here = {"data": {"path": ARGUMENTS.data}, "model": {"name": name}}
    recipe = resolve_recipe([default_recipe(name), ("here", here)], overrides=overrides)
    kind, config = component_class("model", recipe.model)
    needs = getattr(kind, "needs", frozenset()) | getattr(config, "needs", frozenset())
    train = with_content(split.train, recipe, progress=False) if "content" in needs else split.train
    torch.manual_seed(ARGUMENTS.seed)
    model: Recommender = build_component("model", recipe.model, train.catalog)
    model.set_popularity(torch.from_numpy(train.interactions.item_counts()).float())
    model.fit(train)  # type: ignore[operator]
    return model.eval()


def figures(name: str, split: Split) -> dict[str, object]:
    began = time.perf_counter()
    model = trained(name, split)
    seconds = time.perf_counter() - began
    requests = split.validation if ARGUMENTS.validation else split.test
    assert requests.targets is not None
    lists = recommend_all(model, requests, max(KS))
    median, tail = latency(model, requests, k=max(KS))
    found = {f"recall@{k}": round(float(recall(lists, requests.targets, k).nanmean()), 4) for k in KS}
    cost = {"train_s": round(seconds, 1), "p50_ms": round(median, 2), "p99_ms": round(tail, 2)}
    return {"channel": name, **found, **cost}


def main() -> None:
    torch.set_num_threads(ARGUMENTS.threads)
    split = make_split(load_dataset(ARGUMENTS.data), ARGUMENTS.protocol, seed=ARGUMENTS.seed)
    print(json.dumps({"protocol": split.protocol, "requests": split.test.num_requests}), flush=True)
    for name in ARGUMENTS.channels.split(","):
        print(json.dumps(figures(name, split)), flush=True)


if __name__ == "__main__":
    main()
