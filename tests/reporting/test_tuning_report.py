"""Report of a tuning: tables in words, and a plot that is drawn for few and for many trials."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import matplotlib.image
import pytest
from rich.console import Console

from nextitem.evaluation.intervals import Difference
from nextitem.reporting.tuning_report import TuningFigure, TuningSlice, print_tuning, save_tuning_plot, setting_text


def test_settings_figures_and_notes_are_printed() -> None:
    text = StringIO()
    print_tuning(
        "item-graph on shop",
        {"model.walk.decay": (0.3, 1.31442), "model.window": (None, 20), "model.use_content": (True, False)},
        [
            TuningFigure("shop: 400", 0.05, 0.06),
            TuningFigure("shop: 900 others", 0.05, 0.055, Difference(0.005, 0.001, 0.009)),
        ],
        ["mind the gap"],
        console=Console(file=text, width=120),
    )
    lines = text.getvalue().splitlines()
    assert lines[0] == "item-graph on shop"
    assert lines[-1] == "mind the gap"
    for cells in (
        ["model.walk.decay", "0.3", "1.314"],
        ["model.window", "none", "20"],
        ["model.use_content", "True", "False"],
        ["shop: 400", "0.0500", "0.0600", "+20.0%"],
        ["shop: 900 others", "0.0500", "0.0550", "+0.0050 (95% interval +0.0010 .. +0.0090)"],
    ):
        assert any(all(cell in line for cell in cells) for line in lines), cells


def test_a_figure_of_zero_has_no_relative_change() -> None:
    assert TuningFigure("shop", 0.0, 0.1).change == ""


def test_values_are_short() -> None:
    assert [setting_text(value) for value in (0.123456, 3, None, "gbce")] == ["0.1235", "3", "none", "gbce"]


@pytest.mark.parametrize("count", [1, 2, 40])
def test_the_plot_is_drawn_and_the_same_for_the_same_trials(tmp_path: Path, count: int) -> None:
    states = ["complete", "pruned", "failed"]
    trials = [(n, states[n % 3], None if n % 3 == 2 else 0.1 + n / 1000) for n in range(count)]
    points = [(0.1 * (n + 1), value) for n, _, value in trials if value is not None]
    slices = [
        TuningSlice("model.walk.decay", points, ends=(0.1, 10.0), is_log=True),
        TuningSlice("model.dropout", points, ends=(0.0, 1.0)),
        *(TuningSlice(f"model.kind {n}", [("bce", 0.1), ("gbce", 0.2), (True, 0.1)]) for n in range(3)),
    ]
    for name in ("a.png", "b.png"):
        save_tuning_plot(
            tmp_path / name, trials, slices if count > 1 else [], title="$t_1$", objective="ndcg@10", default=0.1
        )
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    height, width, _ = matplotlib.image.imread(tmp_path / "a.png").shape
    assert width > 1000
    assert height > (700 if count > 1 else 300)
