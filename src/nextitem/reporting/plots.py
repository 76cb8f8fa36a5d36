"""Plots of the report, as SVG text to be embedded in a page.

Text and axes take the page's colours, so that one drawing fits light and dark pages. Nothing refers to a file or
address. matplotlib is imported when a plot is drawn, so that evaluation alone does not wait for it.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from nextitem.core.identifiers import IdentifierTable
from nextitem.evaluation.evaluate import Evaluation

# Distinct on white and on near-black, and for most colour-blind readers; markers differ, too.
COLORS = ("#3b82f6", "#f97316", "#10b981", "#d946ef", "#eab308", "#ef4444", "#06b6d4", "#8b7355", "#84cc16", "#94a3b8")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
TEXT_MARKERS = "●■▲◆▼✚✖◀▶⬢"  # the same markers in text
TEXT, LINE = "#010203", "#040506"  # placeholders, replaced by the page's colours
SLICE_FAMILIES = (
    ("memorization", "generalization"),
    ("warm", "cold"),
    ("popular", "middle", "rare"),
    ("history",),
    ("new_category",),
    ("no siblings", "1-3 siblings", "4+ siblings"),
)


def color(index: int) -> str:
    """Return the colour of the model in row `index` of the scoreboard."""
    return COLORS[index % len(COLORS)]


def text_marker(index: int) -> str:
    """Return the marker of the model in row `index` of the scoreboard, as a character."""
    return TEXT_MARKERS[index % len(TEXT_MARKERS)]


def metric_curve(evaluations: Sequence[Evaluation], name: str) -> str | None:
    """Plot metric `name` over k with 95% intervals, one line per model, as SVG; None if none has it."""
    keys = [key for evaluation in evaluations for key in evaluation.metrics if key.split("@")[0] == name]
    ks = sorted({int(key.split("@")[1]) for key in keys})
    if not ks:
        return None
    figure, axes = _figure(4.3, 3.1)
    for index, evaluation in enumerate(evaluations):
        values = {k: evaluation.metrics.get(f"{name}@{k}", float("nan")) for k in ks}
        defined_ks = [k for k in ks if values[k] == values[k]]  # NaN is not
        means = np.array([values[k] for k in defined_ks])
        axes.plot(defined_ks, means, **_line(index))
        pairs = [
            evaluation.intervals.get(f"{name}@{k}", (mean, mean)) for k, mean in zip(defined_ks, means, strict=True)
        ]
        bounds = np.array(pairs, dtype=np.float64).reshape(-1, 2)
        axes.fill_between(defined_ks, bounds[:, 0], bounds[:, 1], color=color(index), alpha=0.15, linewidth=0)
    axes.set_xticks(ks)
    axes.set_xlabel("k")
    axes.set_ylabel(f"{name}@k")
    axes.set_ylim(bottom=0)
    return _svg(figure, f"{name} over k")


def slice_order(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return the names of all slices that occur in the evaluations, those of one family side by side."""
    slices = list(dict.fromkeys(name for evaluation in evaluations for name in evaluation.slices))
    ordered = []
    for family in SLICE_FAMILIES:
        for prefix in family:
            ordered += [name for name in slices if name.startswith(prefix) and name not in ordered]
    return ordered + [name for name in slices if name not in ordered]


def slices_chart(evaluations: Sequence[Evaluation], metric: str) -> str | None:
    """Plot `metric` by slice as SVG, one row per slice and one marker per model; None without slices.

    The label of a row contains the number of requests of its slice.
    """
    measured = {name for evaluation in evaluations for name, part in evaluation.slices.items() if metric in part}
    names = [name for name in slice_order(evaluations) if name in measured]
    if not names:
        return None
    figure, axes = _figure(4.6, 0.9 + 0.3 * len(names))
    heights = {name: -row for row, name in enumerate(names)}
    for index, evaluation in enumerate(evaluations):
        points = [
            (evaluation.slices[name][metric], heights[name])
            for name in names
            if metric in evaluation.slices.get(name, {})
        ]
        coordinates = np.array([point for point in points if point[0] is not None], dtype=float).reshape(-1, 2)
        axes.plot(coordinates[:, 0], coordinates[:, 1], **(_line(index) | {"linestyle": "none", "alpha": 0.85}))
    requests = [
        next(int(evaluation.slices[name]["requests"]) for evaluation in evaluations if name in evaluation.slices)
        for name in names
    ]
    labels = [f"{name.replace('_', ' ')} ({count:,})" for name, count in zip(names, requests, strict=True)]
    axes.set_yticks(list(heights.values()), labels)
    axes.set_ylim(-len(names) + 0.4, 0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel(metric)
    return _svg(figure, f"{metric} by slice")


def front_chart(
    points: Mapping[int, tuple[float, float]], members: Sequence[int], *, x_label: str, y_label: str
) -> str:
    """Plot models by two figures as SVG; those on the front are filled and joined by a line.

    Args:
        points: row of the scoreboard -> (x, y).
        members: rows on the front, in the order of x.
        x_label: name of the first figure.
        y_label: name of the second figure.

    """
    figure, axes = _figure(4.3, 3.1)
    axes.plot(*zip(*(points[index] for index in members), strict=True), color=TEXT, linewidth=1, linestyle="--")
    for index, (x, y) in points.items():
        style = _line(index) | {"linestyle": "none", "markersize": 8, "markeredgewidth": 1.8}
        fill = color(index) if index in members else "none"
        axes.plot([x], [y], **style, markerfacecolor=fill, markeredgecolor=color(index), clip_on=False)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.margins(0.08)
    return _svg(figure, f"{y_label} against {x_label}")


def calibration_chart(bins_by_model: Mapping[int, Sequence[Mapping[str, float]]], label: str) -> str:
    """Plot the observed share against the predicted probability of each bin as SVG, one line per model.

    Bars are 95% intervals of the observed share (normal limit). On the dashed line both are equal.

    Args:
        bins_by_model: row of the scoreboard -> bins, as `Evaluation.calibration` has them.
        label: name of the label.

    """
    figure, axes = _figure(4.3, 3.1)
    largest = max(max(part["predicted"], part["observed"]) for bins in bins_by_model.values() for part in bins)
    axes.plot([0, largest], [0, largest], color=TEXT, linewidth=1, linestyle="--")
    for index, bins in bins_by_model.items():
        observed = np.array([part["observed"] for part in bins])
        errors = 1.96 * np.sqrt(observed * (1 - observed) / np.array([part["count"] for part in bins]))
        predicted = [part["predicted"] for part in bins]
        axes.errorbar(predicted, observed, yerr=errors, elinewidth=0.8, **_line(index))
    axes.set_xlabel("predicted probability")
    axes.set_ylabel(f"observed share of {label}")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    return _svg(figure, "calibration")


def training_curve(epoch_logs: Mapping[str, Sequence[Mapping[str, float]]], models: Sequence[str]) -> str | None:
    """Plot the validation figure of each epoch, one line per model, as SVG.

    Args:
        epoch_logs: model name -> its epochs, each with "epoch" and, if it was validated, "validation".
        models: names of the models in the order of the scoreboard, for their colours.

    Returns:
        The plot, or None if no model was validated.

    """
    figure, axes = _figure(4.3, 3.1)
    has_points = False
    for name, epoch_log in epoch_logs.items():
        points = [(entry["epoch"], entry["validation"]) for entry in epoch_log if "validation" in entry]
        if points:
            has_points = True
            index = models.index(name) if name in models else len(models)
            axes.plot(*zip(*points, strict=True), **(_line(index) | {"markersize": 3}))
    if not has_points:
        return None
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation ndcg@10")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(bottom=0)
    return _svg(figure, "validation by epoch")


def daily_shares(shares: Mapping[str, Sequence[float]]) -> str:
    """Return a plot of a share by day for each name, from the first day on."""
    figure, axes = _figure(7.2, 3.2)
    for index, values in enumerate(shares.values()):
        axes.plot(range(len(values)), values, **{**_line(index), "markersize": 0})
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("day")
    axes.set_ylabel("customers who come back")
    return _svg(figure, "share of customers who come back, by day")


def line_chart(curves: Mapping[str, Sequence[tuple[float, float]]], *, x: str, y: str) -> str:
    """Plot curves of points (x, y) by name as SVG, with a legend if there are several; `x` and `y` label the axes."""
    figure, axes = _figure(4.3, 3.1)
    for index, (name, points) in enumerate(curves.items()):
        axes.plot(*zip(*points, strict=True), label=name, **(_line(index) | {"markersize": 3}))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=TEXT)
    return _svg(figure, f"{y} by {x}")


def codebook_usage(table: IdentifierTable, level: int) -> str:
    """Plot the number of items of each code at one level (0-based) as SVG, from the most to the least used code."""
    counts = torch.bincount(table.codes[1:, level].long(), minlength=table.codebook_sizes[level])
    used = counts[counts > 0].sort(descending=True).values.numpy()
    figure, axes = _figure(3.2, 2.2)
    axes.fill_between(np.arange(len(used) + 1), np.append(used, used[-1]), step="post", color=COLORS[0], linewidth=0)
    axes.set_xlim(0, table.codebook_sizes[level])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"codes of level {level + 1}, most used first")
    axes.set_ylabel("items")
    return _svg(figure, f"usage of the codes of level {level + 1}")


def _line(index: int) -> dict[str, Any]:
    """Return matplotlib's settings of the line of the model in row `index` of the scoreboard."""
    return {"color": color(index), "marker": MARKERS[index % len(MARKERS)], "markersize": 5, "linewidth": 1.6}


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """Return a matplotlib figure of that size in inches, and its axes. It belongs to no window and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LINE)
    axes.tick_params(colors=TEXT, labelsize=9, color=LINE)
    axes.xaxis.label.set_color(TEXT)
    axes.yaxis.label.set_color(TEXT)
    axes.grid(True, color=LINE, linewidth=0.5, alpha=0.5)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Any, label: str) -> str:
    """Return a figure as SVG that can be embedded in HTML beside others; the same text for the same figure."""
    import matplotlib

    buffer = io.StringIO()
    # Text stays text (small, searchable), and names are never read as formulas.
    settings = {"svg.fonttype": "none", "svg.hashsalt": label, "text.parse_math": False}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)  # repeated in every figure, and never referred to
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # HTML knows these; the page then names no address
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg role="img" aria-label="{label}" viewBox="\1">', text)
    return text.replace(TEXT, "currentColor").replace(LINE, "var(--line)")
