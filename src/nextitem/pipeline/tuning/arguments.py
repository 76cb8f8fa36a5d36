"""Checks of the arguments of a tuning that need neither torch nor data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from nextitem.core import registry
from nextitem.core.errors import UserError
from nextitem.pipeline.tuning.named_space import parse_space

AUC = "auc"  # the figure of a ranker whose scores are judged
_ACCURACY = "nextitem.evaluation.metrics.accuracy:"  # module of the metrics that a search can maximise


def check_arguments(
    *,
    minutes: float | None,
    trials: int | None,
    metric: str | None,
    space: Mapping[str, Any] | Sequence[str] = (),
    requests: int = 1,
    jobs: int = 1,
) -> None:
    """Raise UserError if an argument of `tune` is missing or wrong, or if optuna is not installed."""
    if find_spec("optuna") is None:
        raise UserError("tuning needs the extra `tune`; install it with: pip install 'nextitem[tune]'")
    if minutes is None and trials is None:
        raise UserError("nothing says how long to search: give --minutes, --trials, or both")
    for option, value in (("--minutes", minutes), ("--trials", trials), ("--requests", requests), ("--jobs", jobs)):
        if value is not None and not value > 0:
            raise UserError(f"{option} {value}: it has to be greater than 0")
    parse_space(space)
    name, _, k = (metric or AUC).partition("@")
    names = [each for each, entry in registry.METRICS.items() if entry.path.startswith(_ACCURACY)]
    if metric not in (None, AUC) and not (name in names and k.isdigit() and int(k) > 0):
        raise UserError(f"--metric {metric}: write one of {', '.join(names)} with a cutoff, such as recall@20; or auc")
