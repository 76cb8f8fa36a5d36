"""nextitem: from an interaction log to a served recommender."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["evaluate", "load_dataset", "load_run", "train"]

_DOOR = {
    "load_dataset": "nextitem.data.readers",
    "train": "nextitem.pipeline.run",
    "evaluate": "nextitem.pipeline.run",
    "load_run": "nextitem.pipeline.bundle",
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `nextitem --help` must not pay for it.
    if name in _DOOR:
        return getattr(import_module(_DOOR[name]), name)
    raise AttributeError(f"module 'nextitem' has no attribute {name!r}")
