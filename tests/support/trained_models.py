"""Models trained by their debug recipes, once for all tests of a process, and small requests for them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.core.registry import MODELS
from nextitem.pipeline.runs import Run
from nextitem.pipeline.train import train
from nextitem.recipes import read_recipe
from nextitem.testing.known_answers import DATASETS
from nextitem.testing.rich_log import rich_log

RUNS = TemporaryDirectory()  # removed when the tests end

# Settings with which a model reads all columns of requests, if its debug recipe does not.
READS_MORE = {
    "hstu": ["model.actions=interleaved"],
    "tiger": ["model.user_buckets=4"],
    "geo-popularity": ["model.strength=1.0"],
    "multi-behaviour": ["model.behaviours=3"],
}

# Models that learn the cycle in far fewer epochs than the clusters, for which their debug recipes are made.
LEARNS_A_CYCLE = {name: ["training.max_epochs=8", "model.relearn_after=[4]"] for name in ("tdm", "jtm")}


def trained(name: str, data: str = "cycle") -> Run:
    """Return a run of the model's debug recipe on a tiny data set, trained once."""
    return _trained(name, data)  # the cache distinguishes a default from the same value passed


@cache
def _trained(name: str, data: str) -> Run:
    return train(
        name,
        DATASETS[data](),
        out=Path(RUNS.name) / f"{name}-{data}",
        recipe=f"debug/{name}",
        protocol="leave-one-out",
        overrides=LEARNS_A_CYCLE.get(name, []) if data == "cycle" else [],
        progress=False,
    )


def trained_anywhere(name: str) -> Run:
    """Return a run of the model's debug recipe on the first data set that it must solve, which other tests use too."""
    return trained(name, (*MODELS[name].load().known_answers, "cycle")[0])


def few_epochs(name: str, num_epochs: int) -> list[str]:
    """Return the overrides with which the model's debug recipe and its stages train for this number of epochs.

    A model that relearns its identifiers does so after the first epoch.
    """
    _, recipe = read_recipe(f"debug/{name}")
    tables = [
        *(["training"] if "training" in recipe else []),
        *(f"stages.{stage}" for stage in recipe.get("stages", {})),
    ]
    relearning = ["model.relearn_after=[1]"] if "relearn_after" in recipe["model"] else []
    return [*(f"{table}.max_epochs={num_epochs}" for table in tables), *relearning]


def rich_run(name: str, *, again: int = 0) -> Run:
    """Return a run of the model's debug recipe on the rich log, trained once for each number `again`.

    It trains for four epochs: tests of a contract need weights that training has moved, not good ones.
    """
    return _rich_run(name, again)


@cache
def _rich_run(name: str, again: int) -> Run:
    return train(
        name,
        rich_log(),
        out=Path(RUNS.name) / f"{name}-rich-{again}",
        recipe=f"debug/{name}",
        protocol="leave-one-out",
        overrides=[*few_epochs(name, 4), *READS_MORE.get(name, [])],
        progress=False,
    )


def requests(histories: list[list[int]], **columns: Any) -> SequenceBatch:
    """Return requests of visitors with these histories of item numbers."""
    return SequenceBatch(Jagged.from_rows(histories), **columns)
