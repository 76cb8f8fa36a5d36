"""Rankers at equal features: quality, what they cost to train and to score, and what their parts are worth.

    python benchmarks/ranking_study.py --data shop [--customers 16000] [--models din hstu-ranking] [--seeds 3]
    python benchmarks/ranking_study.py --data DATA/amazon14-tools
    python benchmarks/ranking_study.py --data kuairand-like
    python benchmarks/ranking_study.py --data shop --variants 'no actions=hstu-ranking model.actions=ignored'

Every model reads the same fields and trains with its default recipe under protocol `impressions`. A data set whose
events have a label and no impressions is read as one impression for each event; its label is what is predicted.
`kuairand-like` is a generated log in the form of KuaiRand, with eight signals. A variant is a name, a model, and
settings. Prints one JSON line for each model and seed: AUC and GAUC of each task with the intervals of the first one,
log-loss, normalised entropy, processor seconds of training, microseconds of scoring a candidate, parameters, and the
difference of AUC and GAUC from each model of `--against` that stands before it, with the paired 95% interval.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import torch
from measure import Results, Stopwatch, parser
from torch import Tensor

import nextitem as ni
from nextitem.core.dataset import Dataset, Impressions
from nextitem.core.roles import Ranker
from nextitem.data.importers.importing import import_dataset
from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset
from nextitem.data.shop.shop import generate_shop
from nextitem.evaluation.evaluate_ranking import evaluate_ranker, first_task, score_all
from nextitem.evaluation.intervals import paired_auc_difference, paired_difference
from nextitem.pipeline.train import train

MODELS = ["lr", "gbdt", "deepfm", "dcn", "din", "sim", "multi-behaviour", "hstu-ranking", "mtgr"]
SIGNALS = ("is_click", "long_view", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "is_profile_enter")
SIGNAL_BIASES = np.array([-0.4, -1.0, -4.0, -6.0, -5.5, -6.0, -6.5, -4.5])
DAY_MS = 86_400_000


def with_impressions(data: Dataset) -> Dataset:
    """Return a data set with one impression for each event that has a label, if it has no impressions."""
    log = data.interactions
    if data.impressions is not None or not data.labels or log.timestamps is None:
        return data
    rows = np.flatnonzero(log.item_ids > 0)
    impressions = Impressions(
        np.arange(len(rows)),
        log.item_ids[rows],
        log.user_ids[rows],
        log.timestamps[rows],
        log.columns.select(data.labels)[rows],
        labels=data.labels,
    )
    return replace(data, impressions=impressions, catalog=replace(data.catalog, labels=data.labels))


def kuairand_like(folder: Path, *, users: int = 400, videos: int = 4000, pages: int = 60_000) -> Dataset:
    """Write a generated log in the files of KuaiRand-1K, import it, and return the data set.

    Users have tastes that drift; a signal depends on taste, quality, length of the video, and the tab.
    """
    rng = np.random.default_rng(0)
    look, quality = rng.normal(size=(videos, 8)), rng.normal(size=videos)
    author = rng.integers(0, videos // 8, videos)
    look += rng.normal(size=(videos, 8))[author]
    first, last = rng.normal(size=(users, 8)), rng.normal(size=(users, 8))
    owner = rng.zipf(1.3, 50 * pages) - 1
    owner = owner[owner < users][:pages]
    times = np.sort(rng.integers(0, 30 * DAY_MS, len(owner)))
    videos_shown = rng.choice(videos, len(owner), p=np.exp(quality) / np.exp(quality).sum())
    share = (times / (30 * DAY_MS))[:, None]
    taste = (1 - share) * first[owner] + share * last[owner]
    appeal = (taste * look[videos_shown]).sum(1) / 3 + 0.5 * quality[videos_shown]
    weights = np.array([1.0, 1.2, 1.0, 0.7, 0.6, 0.6, -1.0, 0.5])
    chance = 1 / (1 + np.exp(-(SIGNAL_BIASES + weights * appeal[:, None])))
    signals = (rng.random(chance.shape) < chance).astype(int)
    log = pl.DataFrame(
        {
            "user_id": owner,
            "video_id": videos_shown,
            "time_ms": 1_649_000_000_000 + times,
            "is_rand": 0,
            "tab": owner % 4,
        }
        | {name: signals[:, number] for number, name in enumerate(SIGNALS)}
        | {"play_time_ms": signals[:, 1] * 9000, "profile_stay_time": 0, "comment_stay_time": 0}
    )
    source = folder / "KuaiRand-1K" / "data"
    source.mkdir(parents=True)
    log.write_csv(source / "log_standard_4_08_to_4_21_1k.csv")
    people = {"user_id": np.arange(users), "user_active_degree": np.where(np.arange(users) % 3, "full_active", "low")}
    pl.DataFrame(people).write_csv(source / "user_features_1k.csv")
    films = pl.DataFrame(
        {
            "video_id": np.arange(videos),
            "author_id": author,
            "video_type": "NORMAL",
            "upload_dt": "2022-03-01",
            "upload_type": "ShortImport",
            "visible_status": 1,
            "video_duration": np.exp(9 + quality),
            "server_width": 720,
            "server_height": 1280,
            "music_id": author // 3,
            "music_type": 4,
            "tag": [str(code) for code in author // 20],
        }
    )
    films.write_csv(source / "video_features_basic_1k.csv")
    import_dataset("kuairand-1k", [str(source.parent)], out=folder / "imported")
    return load_dataset(folder / "imported")


def load(name: str, folder: Path, customers: int) -> Dataset:
    """Return the data set of this name, or of this folder."""
    if name == "kuairand-like":
        return kuairand_like(folder)
    if name == "shop":
        generate_shop(0, num_users=customers).write(folder / "shop")
        return load_dataset(folder / "shop")
    return with_impressions(ni.load_dataset(name))


def main() -> None:
    """Train and judge every model and variant."""
    options = parser(__doc__ or "", customers=16_000, seeds=1, threads=1)
    options.add_argument("--data", default="shop")
    options.add_argument("--models", nargs="*", default=MODELS)
    options.add_argument("--against", nargs="*", default=["gbdt", "din"], help="models that others are compared with")
    options.add_argument("--variants", nargs="*", default=[], metavar="NAME=MODEL SETTING=VALUE ...")
    options.add_argument("--set", nargs="*", default=[], metavar="SETTING=VALUE", help="settings of all models")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    results = Results(arguments)
    entries: list[tuple[str, str, list[str]]] = [(name, name, []) for name in arguments.models]
    for text in arguments.variants:
        name, _, rest = text.partition("=")
        model, *settings = rest.split()
        entries.append((name, model, settings))
    with TemporaryDirectory() as scratch:
        data = load(arguments.data, Path(scratch), arguments.customers)
        test = make_split(data, "impressions").test
        assert test.candidates is not None
        for seed in range(arguments.seeds):
            judged: dict[str, tuple[Tensor, Tensor]] = {}
            for number, (name, model, settings) in enumerate(entries):
                out = Path(scratch) / f"run-{number}-{seed}"
                overrides = [*settings, *arguments.set]
                with Stopwatch(time.process_time) as training:
                    run = train(
                        model, data, out=out, protocol="impressions", seed=seed, overrides=overrides, progress=False
                    )
                ranker = run.model
                assert isinstance(ranker, Ranker)
                with Stopwatch(time.process_time) as scoring:
                    score_all(ranker, test)
                evaluation = evaluate_ranker(ranker, test)
                scores, labels, groups = first_task(ranker, test)
                differences = {
                    f"{metric} - {other}": [round(value, 4) for value in (gain.mean, gain.low, gain.high)]
                    for other, (other_scores, other_terms) in judged.items()
                    for metric, gain in (
                        ("auc", paired_auc_difference(scores, other_scores, labels, groups)),
                        ("gauc", paired_difference(evaluation.values["gauc"], other_terms)),
                    )
                }
                if name in arguments.against:
                    judged[name] = scores, evaluation.values["gauc"]
                metrics = {key: round(value, 4) for key, value in evaluation.metrics.items()}
                results.add_printed(
                    name,
                    {
                        "model": name,
                        "seed": seed,
                        **metrics,
                        **differences,
                        "auc_interval": evaluation.intervals.get("auc"),
                        "gauc_interval": evaluation.intervals.get("gauc"),
                        "training_seconds": round(training.seconds, 1),
                        "microseconds_a_candidate": round(1e6 * scoring.seconds / len(test.candidates.values), 1),
                        "parameters": sum(part.numel() for part in ranker.parameters()),
                    },
                )


if __name__ == "__main__":
    main()
