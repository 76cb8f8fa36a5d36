"""Recall of every retrieval channel on one data set, and the time of one request.

    python benchmarks/channels.py shop|DATASET_FOLDER [--protocol time] [--channels user-cf,swing] [--validation]

Prints one JSON line for each channel: recall@10, @50 and @200 over the test requests (with --validation: over the
validation requests, to choose settings), seconds of training, and the milliseconds of one request alone (k 200, median
and 99th percentile). Settings are those of the default recipe; --set neighbours=50 changes one. A folder among
--channels is that of a run, such as one of two-tower.
"""

from __future__ import annotations

import os
from pathlib import Path

from measure import Results, Stopwatch, parser

PARSER = parser(__doc__, threads=2, seed=0)
PARSER.add_argument("data")
PARSER.add_argument("--protocol", default=None)
PARSER.add_argument(
    "--channels",
    default="popularity,item-cf,user-cf,swing,matrix-factorisation,content-neighbours,new-items,geo-popularity",
)
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


def trained_channel(name: str, split: Split) -> Recommender:
    """Return the channel of that name, fitted to the split, or the model of a run's folder."""
    if Path(name).is_dir():
        return load_run(name).model
    overrides = [f"model.{setting}" for setting in ARGUMENTS.set]
    source = {"data": {"path": ARGUMENTS.data}, "model": {"name": name}}
    recipe = resolve_recipe([default_recipe(name), ("the benchmark", source)], overrides=overrides)
    kind, config = component_class("model", recipe.model)
    needs = getattr(kind, "needs", frozenset()) | getattr(config, "needs", frozenset())
    train = with_content(split.train, recipe, progress=False) if "content" in needs else split.train
    torch.manual_seed(ARGUMENTS.seed)
    model: Recommender = build_component("model", recipe.model, train.catalog)
    model.set_popularity(torch.from_numpy(train.interactions.item_counts()).float())
    model.fit(train)  # type: ignore[operator]
    return model.eval()


def figures(name: str, split: Split) -> dict[str, object]:
    """Return the row of one channel."""
    with Stopwatch() as training:
        model = trained_channel(name, split)
    requests = split.validation if ARGUMENTS.validation else split.test
    assert requests.targets is not None
    lists = recommend_all(model, requests, max(KS))
    time_of_one = latency(model, requests, k=max(KS))
    recalls = {f"recall@{k}": round(float(recall(lists, requests.targets, k).nanmean()), 4) for k in KS}
    cost = {"train_s": round(training.seconds, 1), "p50_ms": round(time_of_one.p50_ms, 2)}
    cost["p99_ms"] = round(time_of_one.p99_ms, 2)
    return {"channel": name, **recalls, **cost}


def main() -> None:
    torch.set_num_threads(ARGUMENTS.threads)
    split = make_split(load_dataset(ARGUMENTS.data), ARGUMENTS.protocol, seed=ARGUMENTS.seed)
    results = Results(ARGUMENTS)
    results.add_printed("data", {"protocol": split.protocol, "requests": split.test.num_requests})
    for name in ARGUMENTS.channels.split(","):
        results.add_printed(name, figures(name, split))


if __name__ == "__main__":
    main()
