"""Plots of a scaling study: loss over compute and loss over parameters, both on logarithmic axes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nextitem.evaluation.scaling_law import ScalingFit
from nextitem.evaluation.scaling_study import Measurement, ScalingStudy
from nextitem.reporting import plots

CURVE_POINTS = 120
BAND = 0.18  # opacity of an interval


def compute_chart(measurements: Sequence[Measurement], study: ScalingStudy, *, loss_name: str) -> str:
    """Return the plot of loss over compute as SVG."""
    figure, axes = plots._figure(6.4, 4.2)
    draw_by_compute(axes, measurements, study, loss_name=loss_name)
    return plots._svg(figure, "loss over compute")


def size_chart(measurements: Sequence[Measurement], study: ScalingStudy, *, loss_name: str) -> str:
    """Return the plot of loss over parameters, a line for each share of the data, as SVG."""
    figure, axes = plots._figure(6.4, 4.2)
    draw_by_size(axes, measurements, study, loss_name=loss_name)
    return plots._svg(figure, "loss over parameters")


def save_scaling_plot(
    file: Path, measurements: Sequence[Measurement], study: ScalingStudy, *, title: str, loss_name: str
) -> None:
    """Write a PNG with both plots side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 4.8), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    draw_by_compute(left, measurements, study, loss_name=loss_name)
    draw_by_size(right, measurements, study, loss_name=loss_name)
    for axes in (left, right):
        axes.grid(True, linewidth=0.5, alpha=0.4)
    figure.suptitle(title, fontsize=11)
    figure.savefig(file, metadata={"Software": None})


def draw_by_compute(axes: Any, measurements: Sequence[Measurement], study: ScalingStudy, *, loss_name: str) -> None:
    """Draw each run by its compute and loss, the frontier, the law with its interval, and the held-out size."""
    sizes = sorted({each.size for each in measurements})
    largest = sizes[-1]
    for index, size in enumerate(sizes):
        runs = [each for each in measurements if each.size == size]
        style = _style(index, is_filled=size != largest)
        label = f"size {size:g}" + " (not fitted)" * (size == largest)
        axes.plot([each.compute for each in runs], [each.loss for each in runs], **style, label=label)
    ends = [_mean(measurements, configuration) for configuration in study.frontier]
    if len(ends) > 1:
        axes.plot(*zip(*ends, strict=True), color=plots.TEXT, linewidth=0.9, linestyle=":", label="frontier")
    if study.compute_law is not None:
        _curve(axes, study.compute_law, [each.compute for each in measurements], label="law, 95% interval")
    for prediction in (each for each in study.held_out if each.variables == ("compute",)):
        bars = [[prediction.predicted - prediction.low], [prediction.high - prediction.predicted]]
        bar: dict[str, Any] = {"color": plots.COLORS[5], "capsize": 4, "marker": "_", "markersize": 12}
        axes.errorbar(prediction.inputs, [prediction.predicted], yerr=bars, **bar, linestyle="none", label="predicted")
    _finish(axes, "training compute, FLOPs", loss_name)


def draw_by_size(axes: Any, measurements: Sequence[Measurement], study: ScalingStudy, *, loss_name: str) -> None:
    """Draw the mean loss of each size by its parameters, a line for each share of the data, and the law."""
    largest = max(each.size for each in measurements)
    for index, share in enumerate(sorted({each.share for each in measurements}, reverse=True)):
        runs = [each for each in measurements if each.share == share]
        color = plots.color(index)
        for is_largest in (False, True):
            part = [each for each in runs if (each.size == largest) == is_largest]
            style = _style(index, is_filled=not is_largest)
            label = f"share {share:g}" + " (not fitted)" * is_largest
            axes.plot([each.parameters for each in part], [each.loss for each in part], **style, label=label)
        law, num_variables = study.size_law, len(study.size_variables)
        if law is not None and (num_variables == 2 or share == max(each.share for each in measurements)):
            examples = [float(np.mean([each.examples for each in runs]))] if num_variables == 2 else []
            _curve(axes, law, [each.parameters for each in measurements], others=examples, color=color)
    _finish(axes, "parameters outside of embeddings", loss_name)


def _style(index: int, *, is_filled: bool) -> dict[str, Any]:
    """Return matplotlib's settings of points; those that are not fitted are hollow."""
    color = plots.color(index)
    fill = color if is_filled else "none"
    marker = plots.MARKERS[index % len(plots.MARKERS)]
    points = {"markersize": 6, "markeredgewidth": 1.5, "markerfacecolor": fill, "markeredgecolor": color}
    return {"linestyle": "none", "marker": marker, **points}


def _curve(
    axes: Any,
    law: ScalingFit,
    values: Sequence[float],
    *,
    others: Sequence[float] = (),
    color: str = plots.COLORS[0],
    label: str | None = None,
) -> None:
    """Draw a law over its first variable, with its interval; `others` are the values of the other variables."""
    grid = np.geomspace(min(values) / 1.2, max(values) * 1.2, CURVE_POINTS)
    inputs = np.column_stack([grid, *(np.full_like(grid, value) for value in others)])
    low, high = law.band(inputs)
    axes.fill_between(grid, low, high, color=color, alpha=BAND, linewidth=0, label=label)
    axes.plot(grid, law.law(inputs), color=color, linewidth=1.3)


def _mean(measurements: Sequence[Measurement], configuration: tuple[float, float]) -> tuple[float, float]:
    """Return mean compute and mean loss of the runs of a configuration."""
    runs = [each for each in measurements if each.configuration == configuration]
    return float(np.mean([each.compute for each in runs])), float(np.mean([each.loss for each in runs]))


def _finish(axes: Any, x_label: str, loss_name: str) -> None:
    """Make both axes logarithmic, and label them."""
    from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yscale("log")  # losses rarely span a decade, so their ticks are round numbers, not powers
    axes.yaxis.set_major_locator(MaxNLocator(7))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:.4g}")
    axes.set_xlabel(x_label)
    axes.set_ylabel(f"validation loss, {loss_name}")
    axes.legend(fontsize=7.5, loc="best", framealpha=0.6)
