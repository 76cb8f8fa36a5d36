"""Report of a tuning: a table of the best settings and their figures, and a plot of the trials."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from nextitem.evaluation.intervals import Difference
from nextitem.reporting.plots import COLORS

SLICE_COLUMNS = 4  # slices side by side
BEST, TRIAL, FAINT = COLORS[1], COLORS[0], "#94a3b8"


@dataclass(frozen=True)
class TuningFigure:
    """Figures of the default and the best settings on one set of validation requests.

    Attributes:
        requests: the requests, in words.
        default: figure of the default settings.
        best: figure of the best settings.
        difference: best minus default with its 95% interval; None if the settings were selected by these requests.

    """

    requests: str
    default: float
    best: float
    difference: Difference | None = None

    @property
    def change(self) -> str:
        """The difference in words: relative, or with its interval."""
        if self.difference is None:
            return f"{self.best / self.default - 1:+.1%}" if self.default else ""
        low, high = self.difference.low, self.difference.high
        return f"{self.difference.mean:+.4f} (95% interval {low:+.4f} .. {high:+.4f})"


@dataclass(frozen=True)
class TuningSlice:
    """Values of one setting over the trials, with what the search maximised.

    Attributes:
        name: name of the setting.
        points: pairs of (value, objective); texts are drawn in the order of the points.
        ends: lowest and highest value that was tried; None for texts and switches.
        is_log: whether values are drawn on a logarithmic scale.

    """

    name: str
    points: list[tuple[Any, float]]
    ends: tuple[float, float] | None = None
    is_log: bool = False


def print_tuning(
    title: str,
    changes: Mapping[str, tuple[Any, Any]],
    figures: Sequence[TuningFigure],
    notes: Sequence[str],
    *,
    console: Console | None = None,
) -> None:
    """Print the default and best value of each setting, the figures of both, and notes.

    Args:
        title: a line above the tables.
        changes: name of a setting -> its default and its best value.
        figures: figures of the default and the best settings.
        notes: sentences to print below.
        console: where to print; None: stdout.

    """
    output = console or Console(width=None if Console().is_terminal else 160)
    output.print(title, highlight=False)
    settings = Table()
    settings.add_column("setting")
    for column in ("default", "best"):
        settings.add_column(column, justify="right")
    for name, (default, best) in changes.items():
        settings.add_row(name, setting_text(default), setting_text(best))
    output.print(settings)
    table = Table()
    table.add_column("validation requests")
    for column in ("default", "best", "change"):
        table.add_column(column, justify="right")
    for figure in figures:
        table.add_row(figure.requests, f"{figure.default:.4f}", f"{figure.best:.4f}", figure.change)
    output.print(table)
    for note in notes:
        output.print(note, highlight=False)


def setting_text(value: Any) -> str:
    """Return the value of a setting as it is printed."""
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def save_tuning_plot(
    file: Path,
    trials: Sequence[tuple[int, str, float | None]],
    slices: Sequence[TuningSlice],
    *,
    title: str,
    objective: str,
    default: float,
) -> None:
    """Write a PNG: what was reached by each trial, the best so far, and what was reached by the values of settings.

    Args:
        file: the file to write.
        trials: number, state and objective of each trial; None for one that failed.
        slices: values of settings, one plot each.
        title: title of the figure.
        objective: name of the vertical axis.
        default: objective of the default settings.

    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(slices) // SLICE_COLUMNS)
    figure = Figure(figsize=(11, 3.4 + 2.4 * rows), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1 + rows, SLICE_COLUMNS, height_ratios=[1.4, *[1] * rows])
    complete = [(number, value) for number, state, value in trials if state == "complete" and value is not None]
    limits = _limits([value for _, value in complete], default)
    axes = figure.add_subplot(grid[0, :])
    _draw_trials(axes, trials, complete, default)
    axes.set_ylim(*limits)
    axes.set_ylabel(objective)
    axes.set_title(title, fontsize=11)
    for index, each in enumerate(slices):
        axes = figure.add_subplot(grid[1 + index // SLICE_COLUMNS, index % SLICE_COLUMNS])
        _draw_slice(axes, each)
        axes.set_ylim(*limits)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure.savefig(file, metadata={"Software": None})


def _draw_trials(
    axes: Any, trials: Sequence[tuple[int, str, float | None]], complete: list[tuple[int, float]], default: float
) -> None:
    """Draw one point for each trial, and the best so far as a line."""
    numbers, values = np.array(complete).T
    axes.axhline(default, color=FAINT, linewidth=1, linestyle="--", label="default settings")
    axes.scatter(numbers, values, s=14, color=TRIAL, label="trial")
    pruned_trials = [(number, value) for number, state, value in trials if state == "pruned" and value is not None]
    if pruned_trials:
        axes.scatter(*zip(*pruned_trials, strict=True), s=14, marker="x", color=FAINT, label="ended early")
    axes.step(numbers, np.maximum.accumulate(values), where="post", color=BEST, label="best so far")
    axes.set_xlabel("trial")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=8, loc="lower right")


def _draw_slice(axes: Any, part: TuningSlice) -> None:
    """Draw one point for each trial, by the value of one setting."""
    values = [str(value) if part.ends is None else value for value, _ in part.points]
    axes.scatter(values, [objective for _, objective in part.points], s=10, color=TRIAL, alpha=0.7)
    if part.is_log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    if part.ends is not None:
        low, high = part.ends
        margin = 0.04 * (high - low)
        axes.set_xlim((low * 0.9, high * 1.1) if part.is_log else (low - margin, high + margin))
    axes.set_xlabel(part.name, fontsize=9)
    axes.tick_params(labelsize=8)


def _limits(values: Sequence[float], default: float) -> tuple[float, float]:
    """Return the ends of the vertical axis: the worst fifth of the trials may lie below."""
    low, high = min(default, float(np.quantile(values, 0.2))), max(values)
    margin = 0.08 * (high - low) or 0.01 * abs(high) or 0.01
    return low - margin, high + margin
