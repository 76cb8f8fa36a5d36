"""The report's plots, as SVG text that stands inside a page.

Text and axes take the page's colour, so that one drawing serves light and dark; nothing refers to a file or address.
matplotlib is imported when a plot is drawn: evaluation alone does not pay for it.
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

# Told apart on white and on near-black, and by most colour-blind readers; markers differ too.
COLORS = ("#3b82f6", "#f97316", "#10b981", "#d946ef", "#eab308", "#ef4444", "#06b6d4", "#8b7355", "#84cc16", "#94a3b8")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
SIGNS = "●■▲◆▼✚✖◀▶⬢"  # the same marks in text
TEXT, LINE = "#010203", "#040506"  # stand-ins, replaced by the page's colours
SLICE_FAMILIES = (
    ("memorization", "generalization"),
    ("warm", "cold"),
    ("popular", "middle", "rare"),
    ("history",),
    ("new_category",),
    ("no siblings", "1-3 siblings", "4+ siblings"),
)


def color(index: int) -> str:
    """The colour of the model at that place on the scoreboard."""
    return COLORS[index % len(COLORS)]


def sign(index: int) -> str:
    """The mark of the model at that place, as text."""
    return SIGNS[index % len(SIGNS)]


def metric_curve(evaluations: Sequence[Evaluation], name: str) -> str | None:
    """Metric `name` over k with 95% intervals, a line for each model; None where no model has it."""
    ks = sorted({int(key.split("@")[1]) for one in evaluations for key in one.metrics if key.split("@")[0] == name})
    if not ks:
        return None
    figure, axes = _figure(4.3, 3.1)
    for index, one in enumerate(evaluations):
        known = [k for k in ks if one.metrics.get(f"{name}@{k}", float("nan")) == one.metrics.get(f"{name}@{k}")]
        means = np.array([one.metrics[f"{name}@{k}"] for k in known])
        axes.plot(known, means, **_line(index))
        pairs = [one.intervals.get(f"{name}@{k}", (mean, mean)) for k, mean in zip(known, means, strict=True)]
        bounds = np.array(pairs, dtype=np.float64).reshape(-1, 2)
        axes.fill_between(known, bounds[:, 0], bounds[:, 1], color=color(index), alpha=0.15, linewidth=0)
    axes.set_xticks(ks)
    axes.set_xlabel("k")
    axes.set_ylabel(f"{name}@k")
    axes.set_ylim(bottom=0)
    return _svg(figure, f"{name} over k")


def slice_order(evaluations: Sequence[Evaluation]) -> list[str]:
    """All slices that occur, families together, in the order in which they are read."""
    seen = list(dict.fromkeys(name for one in evaluations for name in one.slices))
    ordered = []
    for family in SLICE_FAMILIES:
        for start in family:
            ordered += [name for name in seen if name.startswith(start) and name not in ordered]
    return ordered + [name for name in seen if name not in ordered]


def slices_chart(evaluations: Sequence[Evaluation], metric: str) -> str | None:
    """A row for each slice with its requests, a mark for each model at its figure; None without slices."""
    known = {name for one in evaluations for name, part in one.slices.items() if metric in part}
    names = [name for name in slice_order(evaluations) if name in known]
    if not names:
        return None
    figure, axes = _figure(4.6, 0.9 + 0.3 * len(names))
    places = {name: -row for row, name in enumerate(names)}
    for index, one in enumerate(evaluations):
        points = [(one.slices[name][metric], places[name]) for name in names if metric in one.slices.get(name, {})]
        shown = np.array([point for point in points if point[0] is not None], dtype=float).reshape(-1, 2)
        axes.plot(shown[:, 0], shown[:, 1], **(_line(index) | {"linestyle": "none", "alpha": 0.85}))
    requests = [next(int(one.slices[name]["requests"]) for one in evaluations if name in one.slices) for name in names]
    labels = [f"{name.replace('_', ' ')} ({count:,})" for name, count in zip(names, requests, strict=True)]
    axes.set_yticks(list(places.values()), labels)
    axes.set_ylim(-len(names) + 0.4, 0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel(metric)
    return _svg(figure, f"{metric} by slice")


def training_curve(histories: Mapping[str, Sequence[Mapping[str, float]]], models: Sequence[str]) -> str | None:
    """The validation figure of each epoch, a line for each model that trained; None where none did."""
    figure, axes = _figure(4.3, 3.1)
    drawn = False
    for name, history in histories.items():
        points = [(entry["epoch"], entry["validation"]) for entry in history if "validation" in entry]
        if points:
            drawn = True
            index = models.index(name) if name in models else len(models)
            axes.plot(*zip(*points, strict=True), **(_line(index) | {"markersize": 3}))
    if not drawn:
        return None
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation ndcg@10")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(bottom=0)
    return _svg(figure, "validation by epoch")


def codebook_usage(table: IdentifierTable, level: int) -> str:
    """Items by code at one level (0-based), codes from the most to the least used."""
    counts = torch.bincount(table.codes[1:, level].long(), minlength=table.codebook_sizes[level])
    used = counts[counts > 0].sort(descending=True).values.numpy()
    figure, axes = _figure(3.2, 2.2)
    axes.fill_between(np.arange(len(used) + 1), np.append(used, used[-1]), step="post", color=COLORS[0], linewidth=0)
    axes.set_xlim(0, table.codebook_sizes[level])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"codes of level {level + 1}, by use")
    axes.set_ylabel("items")
    return _svg(figure, f"use of the codes of level {level + 1}")


def _line(index: int) -> dict[str, Any]:
    return {"color": color(index), "marker": MARKERS[index % len(MARKERS)], "markersize": 5, "linewidth": 1.6}


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure of that size in inches. It belongs to no window and no global state."""
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
    """The figure as SVG that may stand in HTML beside others; the same text for the same figure."""
    import matplotlib

    written = io.StringIO()
    # Text stays text (small, searchable), and names are never read as formulas.
    settings = {"svg.fonttype": "none", "svg.hashsalt": label, "text.parse_math": False}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure.savefig(written, format="svg", metadata={"Date": None})
    text = written.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)  # repeated from figure to figure, and never referred to
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # HTML knows these; the page then names no address
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg role="img" aria-label="{label}" viewBox="\1">', text)
    return text.replace(TEXT, "currentColor").replace(LINE, "var(--line)")
