"""Figures of the parts of a blend, each alone, and how much better the blend is than each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from nextitem.core.batch import SequenceBatch
from nextitem.core.recommender import Recommender
from nextitem.evaluation.evaluate import ACCURACY, Evaluation, recommend_all
from nextitem.evaluation.intervals import Difference, paired_difference
from nextitem.models.blend import Blend, PartUse

METRICS = ("recall", "ndcg")


@dataclass(frozen=True)
class PartFigures:
    """Figures of one part of a blend.

    Attributes:
        name: name of the part.
        use: weight of the part in the blend, and the way from its scores to probabilities.
        metrics: name@k -> mean over the requests, of the part alone.
        gains: name@k -> blend minus part, request by request, with its 95% interval.

    """

    name: str
    use: PartUse
    metrics: dict[str, float]
    gains: dict[str, Difference]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values, in the public format; a gain is [mean, low, high]."""
        return {
            "name": self.name,
            **vars(self.use),
            "metrics": self.metrics,
            "gains": {name: [gain.mean, gain.low, gain.high] for name, gain in self.gains.items()},
        }


def part_figures(
    blend: Blend, evaluation: Evaluation, requests: SequenceBatch, *, ks: Sequence[int], progress: bool = False
) -> list[PartFigures]:
    """Return the figures of each part of a blend.

    Args:
        blend: the blend.
        evaluation: its evaluation on the requests.
        requests: requests with targets.
        ks: cutoffs of the metrics.
        progress: print a progress bar if stderr is a terminal.

    Returns:
        The parts in their order.

    """
    assert requests.targets is not None, "requests must have targets"
    figures = []
    for part, (name, use) in zip(blend.parts, blend.uses.items(), strict=True):
        lists = recommend_all(cast(Recommender, part), requests, max(ks), progress=progress)
        values = {f"{metric}@{k}": ACCURACY[metric](lists, requests.targets, k) for metric in METRICS for k in ks}
        means = {metric: float(value.nanmean()) for metric, value in values.items()}
        gains = {metric: paired_difference(evaluation.values[metric], value) for metric, value in values.items()}
        figures.append(PartFigures(name, use, means, gains))
    return figures
