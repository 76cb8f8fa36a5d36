"""Models that no other one beats in two figures at once (a Pareto front), such as accuracy and coverage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from nextitem.evaluation.evaluate import Evaluation
from nextitem.reporting import plots
from nextitem.reporting.elements import bold, legend

ACCURACY = "recall@10"
VARIETY = {
    "coverage@10": "coverage: share of the catalogue that any list contains",
    "novelty@10": "novelty: how rare the recommended items are, in bits",
    "diversity@10": "diversity: how different the items of a list are",
}


def front(points: Mapping[int, tuple[float, float]]) -> list[int]:
    """Return the numbers of the points that no other point dominates, in the order of their first value, highest first.

    A point dominates another if it is at least as high in both values, and higher in one. Points with NaN are on no
    front, and dominate none.
    """
    defined = {index: point for index, point in points.items() if point[0] == point[0] and point[1] == point[1]}
    members = [
        index
        for index, (x, y) in defined.items()
        if not any(a >= x and b >= y and (a > x or b > y) for a, b in defined.values())
    ]
    return sorted(members, key=lambda index: (-defined[index][0], index))


def points_of(evaluations: Sequence[Evaluation], metric: str) -> dict[int, tuple[float, float]]:
    """Return (recall@10, metric) of each model that has both, by its row in the scoreboard."""
    return {
        index: (evaluation.metrics[ACCURACY], evaluation.metrics[metric])
        for index, evaluation in enumerate(evaluations)
        if ACCURACY in evaluation.metrics and metric in evaluation.metrics
    }


def fronts(evaluations: Sequence[Evaluation]) -> str:
    """Return the section of accuracy against coverage, novelty and diversity; empty with fewer than two models."""
    cards = ""
    for metric, meaning in VARIETY.items():
        points = points_of(evaluations, metric)
        members = front(points)
        if len(points) < 2 or not members:
            continue
        plot = plots.front_chart(points, members, x_label=ACCURACY, y_label=metric)
        names = bold([evaluations[index].model for index in members])
        cards += (
            f'<figure class="card">{plot}<figcaption>{escape(meaning).capitalize()}. '
            f"Not beaten in both: {names}.</figcaption></figure>"
        )
    if not cards:
        return ""
    return (
        "<h2>Accuracy against variety</h2>"
        f'{legend([evaluation.model for evaluation in evaluations])}<div class="grid">{cards}</div>'
        '<p class="soft">Filled and joined by a line: models that no other model beats in both figures. A hollow model '
        "is beaten by one that is at least as good in both. Up and right is better if you want variety; whether you do "
        "is a question to your shop, not to these figures.</p>"
    )
