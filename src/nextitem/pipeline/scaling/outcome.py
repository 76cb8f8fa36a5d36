"""Outcome of a scaling study: its points, laws and verdict, and the files that contain them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from nextitem.evaluation.scaling_law import ScalingFit
from nextitem.evaluation.scaling_study import ScalingStudy, study
from nextitem.pipeline.bundle import write_json
from nextitem.pipeline.scaling.points import Point, PointKey
from nextitem.reporting.scaling_plot import save_scaling_plot
from nextitem.reporting.scaling_report import (
    ScalingPage,
    ScalingRow,
    law_texts,
    number_names,
    write_scaling_report,
)


@dataclass(frozen=True)
class Scaling:
    """Outcome of `scale`.

    Attributes:
        folder: the folder that contains report.html, results.json, scaling.png and points.jsonl.
        model: name of the model.
        data: name of the data set.
        protocol: how the data were split.
        loss_name: name of the loss.
        merit_name: name of the figure of merit.
        requests: number of validation requests that the loss was measured on.
        points: all trained points, in order.

    """

    folder: Path
    model: str
    data: str
    protocol: str
    loss_name: str
    merit_name: str
    requests: int
    points: list[Point] = field(repr=False)

    def __repr__(self) -> str:
        """Return the folder, the laws and the verdict."""
        lines = [f"Scaling in {self.folder}: {self.model} on {self.data}, {len(self.points)} points"]
        return "\n".join([*lines, *(f"  {text}" for text in (*self.laws.values(), *self.study.sentences))])

    @cached_property
    def study(self) -> ScalingStudy:
        """Laws, prediction of the largest size, and verdict."""
        used = self._used_keys
        return study([point.measurement for point in self.points if point.key in used])

    @property
    def verdict(self) -> str:
        """The verdict: power law, plateau, no power law, or too few decades."""
        return self.study.kind

    @property
    def laws(self) -> dict[str, str]:
        """The laws as equations: "compute" and "parameters, examples" (or "parameters")."""
        return law_texts(self.study)

    def to_frame(self) -> pl.DataFrame:
        """Return a data frame with a line for each point."""
        names = ["size", "share", "seed", "rate", "embedding_parameters", "other_parameters", "examples", "epochs"]
        names += ["best_epoch", "forward_flops", "backward_flops", "compute", "loss", "merit", "seconds"]
        rows = [{name: getattr(point, name) for name in names} for point in self.points]
        return pl.DataFrame(
            [row | {"is_used": self._is_used(point)} for row, point in zip(rows, self.points, strict=True)]
        )

    def page(self) -> ScalingPage:
        """Return what the report and the terminal print."""
        rows = [
            ScalingRow(
                point.measurement,
                settings=", ".join(f"{name.split('.')[-1]} {_text(value)}" for name, value in point.settings.items()),
                embedding_parameters=point.embedding_parameters,
                best_epoch=point.best_epoch,
                epochs=point.epochs,
                merit=point.merit,
                seconds=point.seconds,
                is_used=self._is_used(point),
            )
            for point in self.points
        ]
        facts = [
            f"{len(self.points)} runs on {self.data}, protocol {self.protocol}. Loss on {self.requests:,} validation "
            f"requests: {self.loss_name}; figure of merit: {self.merit_name}."
        ]
        return ScalingPage(f"Scaling of {self.model}", facts, self.loss_name, self.merit_name, rows, self.study)

    def to_json(self) -> dict[str, Any]:
        """Return the contents of results.json."""
        each = self.study
        names = ("model", "data", "protocol", "loss_name", "merit_name", "requests")
        return {
            **{name: getattr(self, name) for name in names},
            "verdict": each.kind,
            "sentences": list(each.sentences),
            "laws": {
                ", ".join(variables): _law_table(fit, variables, self.laws[", ".join(variables)])
                for fit, variables in ((each.compute_law, ("compute",)), (each.size_law, each.size_variables))
                if fit is not None
            },
            "held_out": [asdict(prediction) | {"error": prediction.error} for prediction in each.held_out],
            "frontier": [list(configuration) for configuration in each.frontier],
            "runs": [
                asdict(point) | {"compute": point.compute, "is_used": self._is_used(point)} for point in self.points
            ],
        }

    def save(self) -> None:
        """Write results.json, report.html and scaling.png."""
        page = self.page()
        write_json(self.folder / "results.json", self.to_json())
        write_scaling_report(self.folder / "report.html", page)
        title = f"{self.model} on {self.data}: {self.study.kind}"
        save_scaling_plot(
            self.folder / "scaling.png", page.measurements, self.study, title=title, loss_name=self.loss_name
        )

    def _is_used(self, point: Point) -> bool:
        return point.key in self._used_keys

    @cached_property
    def _used_keys(self) -> frozenset[PointKey]:
        """The points that the study reads: of each size and share, those with the best learning rate."""
        return frozenset(point.key for group in _groups(self.points).values() for point in _best_rate(group))


def _groups(points: Sequence[Point]) -> dict[tuple[float, float], list[Point]]:
    groups: dict[tuple[float, float], list[Point]] = {}
    for point in points:
        groups.setdefault((point.size, point.share), []).append(point)
    return groups


def _best_rate(points: Sequence[Point]) -> list[Point]:
    """Return the points with the learning rate whose mean loss over seeds is the lowest.

    Only rates with the largest number of seeds compete.
    """
    by_rate: dict[float, list[Point]] = {}
    for point in points:
        by_rate.setdefault(point.rate, []).append(point)
    num_seeds = max(len(group) for group in by_rate.values())
    complete = [group for group in by_rate.values() if len(group) == num_seeds]
    return min(complete, key=lambda group: float(np.mean([point.loss for point in group])))


def _law_table(fit: ScalingFit, variables: Sequence[str], text: str) -> dict[str, Any]:
    """Return a law as a table of results.json."""
    names = number_names(variables)
    return {
        "text": text,
        **dict(zip(names, fit.law.numbers(), strict=True)),
        "intervals": dict(zip(names, [list(each) for each in fit.intervals()], strict=True)),
    }


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
