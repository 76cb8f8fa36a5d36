"""Models, one per file. The package itself can be called: `nextitem.models()` returns a table of all models."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl


class _Models(ModuleType):
    """Module type of this package: a call behaves as the function `nextitem.models`."""

    def __call__(self, kind: str | None = None) -> pl.DataFrame:
        from nextitem.core.registry import models

        return models(kind)


# Importing any model binds the name `models` of the package above to this module, so the module must be callable.
sys.modules[__name__].__class__ = _Models
