"""Every registered model's debug recipe, trained once for all tests of a process, and small requests to ask it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.pipeline.runs import Run
from nextitem.pipeline.train import train
from support.known_answers import DATASETS

RUNS = TemporaryDirectory()  # removed when the tests end


def trained(name: str, data: str = "cycle", again: int = 0) -> Run:
    """The model's debug recipe on a tiny data set, trained once; `again` asks for another training."""
    return _trained(name, data, again)  # the cache tells a default from the same value passed


@cache
def _trained(name: str, data: str, again: int) -> Run:
    out = Path(RUNS.name) / f"{name}-{data}-{again}"
    return train(name, DATASETS[data](), out=out, recipe=f"debug/{name}", protocol="leave-one-out", progress=False)


def requests(histories: list[list[int]], **fields: Any) -> SequenceBatch:
    """Requests of visitors with these histories of item numbers."""
    return SequenceBatch(Jagged.from_rows(histories), **fields)
