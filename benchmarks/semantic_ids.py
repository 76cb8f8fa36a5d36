"""Semantic IDs of every tokenizer under the same generator, budget and data: recall, quality, stability.

    python benchmarks/semantic_ids.py planted [--seeds 0 1 2]
    python benchmarks/semantic_ids.py DATASET_FOLDER --minutes 15 [--tokenizers rq-vae residual-kmeans]

`planted`: items lie in a two-level tree of clusters that their content shows, users stay within a small cluster, and
half of the targets were seen with few other items. Prints one JSON line for each tokenizer and seed: recall@10 and
NDCG@10 of TIGER on its codes, collisions, neighbours that share the first code, and stability: the adjusted mutual
information of first codes between this seed's fit and the next one's (1: the same groups).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from measure import Results, Stopwatch, parser
from sklearn.metrics import adjusted_mutual_info_score

import nextitem as ni
from nextitem.core.catalog import Catalog
from nextitem.core.config import write_toml
from nextitem.core.dataset import Dataset, Users
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.core.registry import TOKENIZERS
from nextitem.data.protocols import make_split
from nextitem.pipeline.recipe import resolve_recipe
from nextitem.pipeline.tokenize import make_tokenizer, with_content
from nextitem.recipes import read_recipe

PLANTED = {"codebook_size": 8, "levels": 3}
PLANTED_RUN = (
    "content.encoder=content_planted",
    "model.max_history_length=5",
    "training.validate_every=2",
    "training.max_epochs=12",
    "training.batch_size=64",
    "quality.min_usage=0",
    "quality.min_entropy_share=0",
    "quality.max_collision_rate=1",
)
SETTINGS: dict[str, dict[str, Any]] = {
    "fsq": {"values": [4, 2], "levels": 3},
    "tree": {"codebook_size": 8},
    "clusters": {"codebook_sizes": [8, 8, 16]},
}


def planted(
    *, seed: int, coarse: int = 8, fine: int = 8, each: int = 16, users: int = 1500, length: int = 6
) -> Dataset:
    """Return a data set of 1,024 items.

    Their content, in a column of numbers, is the sum of a coarse cluster's vector, a fine cluster's vector and noise.
    """
    rng = np.random.default_rng(seed)
    count = coarse * fine * each
    group = rng.permutation(np.repeat(np.arange(coarse * fine), each))
    top, below = rng.normal(size=(coarse, 16)) * 3, rng.normal(size=(coarse * fine, 16))
    content = top[group // fine] + below[group] + 0.3 * rng.normal(size=(count, 16))
    members = [np.flatnonzero(group == number) + 1 for number in range(coarse * fine)]
    home = rng.integers(coarse * fine, size=users)
    items = np.concatenate([rng.choice(members[number], length, replace=False) for number in home]).astype(np.int32)
    log = Interactions(
        np.repeat(np.arange(1, users + 1), length).astype(np.int32),
        items,
        users,
        count,
        timestamps=np.tile(np.arange(length) * 3_600_000, users) + 1_600_000_000_000,
    )
    ids = pl.Series("item_id", [f"i{number}" for number in range(1, count + 1)])
    table = pl.DataFrame({"item_id": ids, "content_planted": content.astype(np.float32).tolist()})
    people = Users(IdMap(pl.Series("user_id", [f"u{number}" for number in range(1, users + 1)])))
    return Dataset("planted", log, Catalog(IdMap(ids), table), people, fingerprint=f"planted-{seed}")


def first_codes(data: Dataset, recipe: Any) -> np.ndarray:
    """Return the first code of each item, by a tokenizer that is fitted for this."""
    train = with_content(make_split(data, None, seed=recipe.seed).train, recipe)
    tokenizer = make_tokenizer(train, recipe, out=None, progress=False)
    return tokenizer.encode_catalog(train.catalog)[:, 0].numpy()


def main() -> None:
    options = parser(__doc__, threads=2)
    options.add_argument("data")
    options.add_argument("--tokenizers", nargs="+", default=list(TOKENIZERS), choices=list(TOKENIZERS))
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--minutes", type=float, help="of training, in addition to the recipe's own limit")
    options.add_argument("--recipe", help="default: default/tiger, for planted debug/tiger, larger")
    options.add_argument("--set", dest="overrides", nargs="+", default=[])
    arguments = options.parse_args()
    results = Results(arguments)
    torch.set_num_threads(arguments.threads)
    is_planted = arguments.data == "planted"
    name = arguments.recipe or ("debug/tiger" if is_planted else "default/tiger")
    overrides = [*arguments.overrides]
    if is_planted:
        overrides = [*PLANTED_RUN, *overrides]
    if arguments.minutes is not None:
        overrides += [f"training.max_minutes={arguments.minutes}"]
    for tokenizer in arguments.tokenizers:
        for seed in arguments.seeds:
            data = planted(seed=seed) if is_planted else ni.load_dataset(arguments.data)
            settings = SETTINGS.get(tokenizer, PLANTED) if is_planted else {}
            table = {"tokenizer": {"name": tokenizer, **settings}}
            base, path = read_recipe(name), "planted" if is_planted else arguments.data
            recipe = resolve_recipe(
                [base, ("the benchmark", {**table, "seed": seed, "data": {"path": str(path)}})], overrides=overrides
            )
            with Stopwatch() as watch, tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "recipe.toml"
                write_toml(file, recipe.model_dump())
                run = ni.train("tiger", data, out=Path(folder) / "run", recipe=str(file), seed=seed, progress=False)
            other = recipe.model_copy(update={"seed": seed + 1000})
            stability = adjusted_mutual_info_score(first_codes(data, recipe), first_codes(data, other))
            identifiers = run.model.identifiers
            assert identifiers is not None
            report = identifiers.report or {}
            row = {metric: round(run.metrics["metrics"][metric], 4) for metric in ("recall@10", "ndcg@10")}
            quality = {
                "collisions": round(report["collision_rate"], 3),
                "neighbours": round(report["neighbours_sharing_prefix"][0], 3),
                "stability": round(float(stability), 3),
            }
            about = {"data": data.name, "tokenizer": tokenizer, "seed": seed}
            results.add_printed(
                f"{tokenizer}, seed {seed}", {**about, **row, **quality, "seconds": round(watch.seconds)}
            )


if __name__ == "__main__":
    main()
