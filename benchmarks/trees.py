"""Recall of TDM and JTM by tree (random, by category, by content, learned, jointly learned) and by beam width.

    python benchmarks/trees.py DATASET_FOLDER [--protocol user-split] [--recipe amazon14-beauty] [--requests 500]
        [--variants random content learnt jtm] [--beams 10 20 50] [--set training.max_epochs=6]
    python benchmarks/trees.py planted     a generated catalogue of 1,024 items in clusters, instead of a folder

All variants have the same network, examples, epochs and seed. `random`, `category` and `content` keep their first tree;
`learnt` begins with the tree by content, as the paper does with its categories, and learns a new one after the recipe's
epochs; `jtm` learns it jointly, `otm` is `learnt` with beam-aware training; `learnt-from-random` and `jtm-from-random`
begin with the random one.

Prints one JSON line for each variant and seed. `exhaustive` is recall@10 of scoring every leaf by the same network (a
beam as wide as the catalogue) on --requests requests, `beam` that of the recipe's beam on the same ones. `beams` is
recall@10 of narrower ones on all test requests: the narrower a beam, the more depends on the tree.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import torch
from measure import Results, Stopwatch, parser

import nextitem as ni
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset, Users
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.data.protocols import make_split
from nextitem.evaluation.evaluate import recommend_all
from nextitem.evaluation.metrics import accuracy
from nextitem.models.tdm.jtm import JTM
from nextitem.models.tdm.tdm import TDM

VARIANTS = {
    "random": ("tdm", ["tokenizer.order=random", "model.relearn_after=[]"]),
    "category": ("tdm", ["tokenizer.order=category", "model.relearn_after=[]"]),
    "content": ("tdm", ["tokenizer.order=content", "model.relearn_after=[]"]),
    "learnt": ("tdm", ["tokenizer.order=content"]),
    "learnt-from-random": ("tdm", ["tokenizer.order=random"]),
    "otm": ("tdm", ["tokenizer.order=content", "model.objective=beam-aware"]),
    "jtm": ("jtm", ["tokenizer.order=content"]),
    "jtm-from-random": ("jtm", ["tokenizer.order=random"]),
    "jtm-fixed": ("jtm", ["tokenizer.order=content", "model.relearn_after=[]"]),
}


def planted(*, seed: int, clusters: int = 32, each: int = 32, users: int = 4000, length: int = 9) -> Dataset:
    """Return a data set whose users walk within one of 32 clusters, the next item depending on the last.

    Titles name one eighth of the catalogue, and noise.
    """
    rng = np.random.default_rng(seed)
    following = rng.permutation(each)
    home = rng.integers(clusters, size=users)
    place = np.empty((users, length), np.int64)
    place[:, 0] = rng.integers(each, size=users)
    for step in range(1, length):
        leaps = rng.random(users) < 0.5
        place[:, step] = np.where(leaps, rng.integers(each, size=users), following[place[:, step - 1]])
    shuffled = rng.permutation(clusters * each) + 1
    items = shuffled[home[:, None] * each + place].ravel().astype(np.int32)
    log = Interactions(
        np.repeat(np.arange(1, users + 1), length).astype(np.int32),
        items,
        users,
        clusters * each,
        timestamps=np.tile(np.arange(length) * 3_600_000, users) + 1_600_000_000_000,
    )
    ids = pl.Series("item_id", [f"i{number}" for number in range(1, clusters * each + 1)])
    eighth = np.empty(clusters * each + 1, np.int64)
    eighth[shuffled] = np.arange(clusters * each) // (each * 4)
    halves = ["abcdefgh"[eighth[n]] * 4 for n in range(1, clusters * each + 1)]
    titles = pl.Series([f"{name} thing w{rng.integers(200)} v{rng.integers(200)}" for name in halves])
    table = pl.DataFrame({"item_id": ids, "title": titles, "category": halves})
    people = Users(IdMap(pl.Series("user_id", [f"u{number}" for number in range(1, users + 1)])))
    catalog = Catalog(IdMap(ids), table, text=titles)
    return Dataset("planted", log, catalog, people, fingerprint=f"planted-{seed}")


def recall(model: TDM | JTM, requests: SequenceBatch, width: int) -> float:
    """Return recall@10 with a beam of `width`."""
    model.config = model.config.model_copy(update={"beam_width": width})
    lists = recommend_all(model, requests, 10, batch_size=8 if width > 1000 else 128)
    assert requests.targets is not None
    return round(float(accuracy.recall(lists, requests.targets, 10).nanmean()), 4)


def main() -> None:
    options = parser(__doc__, requests=500, threads=2)
    options.add_argument("data")
    options.add_argument("--protocol", default="user-split")
    options.add_argument("--recipe", default="default")
    options.add_argument(
        "--variants", nargs="+", default=["random", "content", "learnt", "jtm"], choices=list(VARIANTS)
    )
    options.add_argument("--set", dest="overrides", nargs="+", default=[])
    options.add_argument("--beams", type=int, nargs="+", default=[10, 20, 50])
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = options.parse_args()
    results = Results(arguments)
    torch.set_num_threads(arguments.threads)
    for seed in arguments.seeds:
        data = planted(seed=seed) if arguments.data == "planted" else ni.load_dataset(arguments.data)
        split = make_split(data, arguments.protocol, seed=seed)
        rows = torch.linspace(0, split.test.num_requests - 1, min(arguments.requests, split.test.num_requests)).long()
        some = split.test.select(rows)
        for name in arguments.variants:
            model, overrides = VARIANTS[name]
            with Stopwatch() as watch, tempfile.TemporaryDirectory() as folder:
                run = ni.train(
                    model,
                    data,
                    out=Path(folder) / name,
                    recipe=f"{arguments.recipe}/{model}",
                    protocol=arguments.protocol,
                    seed=seed,
                    overrides=[*overrides, *arguments.overrides],
                    progress=False,
                )
                row = {
                    metric: round(run.metrics["metrics"][metric], 4) for metric in ("recall@10", "ndcg@10", "recall@20")
                }
                tree = run.model
                assert isinstance(tree, TDM | JTM)
                recalls = {
                    "beam": recall(tree, some, tree.config.beam_width),
                    "exhaustive": recall(tree, some, tree.num_items),
                    "beams": {width: recall(tree, split.test, width) for width in arguments.beams},
                }
            about = {"data": data.name, "variant": name, "seed": seed, "best_epoch": run.metrics["best_epoch"]}
            results.add_printed(f"{name}, seed {seed}", {**about, **row, **recalls, "seconds": round(watch.seconds)})


if __name__ == "__main__":
    main()
