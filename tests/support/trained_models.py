"""Models trained by their debug recipes, once for all tests of a process, and small requests for them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.pipeline.runs import Run
from nextitem.pipeline.train import train
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


def trained(name: str, data: str = "cycle") -> Run:
    """Return a run of the model's debug recipe on a tiny data set, trained once."""
    return _trained(name, data)  # the cache distinguishes a default from the same value passed


@cache
def _trained(name: str, data: str) -> Run:
    out = Path(RUNS.name) / f"{name}-{data}"
    return train(name, DATASETS[data](), out=out, recipe=f"debug/{name}", protocol="leave-one-out", progress=False)


def rich_run(name: str, *, again: int = 0) -> Run:
    """Return a run of the model's debug recipe on the rich log, trained once for each number `again`."""
    return _rich_run(name, again)


@cache
def _rich_run(name: str, again: int) -> Run:
    return train(
        name,
        rich_log(),
        out=Path(RUNS.name) / f"{name}-rich-{again}",
        recipe=f"debug/{name}",
        protocol="leave-one-out",
        overrides=READS_MORE.get(name, []),
        progress=False,
    )


def requests(histories: list[list[int]], **columns: Any) -> SequenceBatch:
    """Return requests of visitors with these histories of item numbers."""
    return SequenceBatch(Jagged.from_rows(histories), **columns)
