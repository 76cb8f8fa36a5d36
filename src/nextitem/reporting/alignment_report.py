"""Report of an alignment: figures before and after, and curves of true and modelled reward over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nextitem.reporting.plots import line_chart
from nextitem.reporting.report_style import STYLE

TITLES = {
    "recall@10": "recall@10",
    "ndcg@10": "NDCG@10",
    "true": "true reward",
    "true_alone": "true reward, items alone",
    "modelled": "modelled reward",
    "held_out": "held-out modelled reward",
    "legality": "legality",
    "free_legality": "legality without constraint",
    "diversity@10": "diversity@10",
    "coverage@10": "coverage@10",
}
REWARD_CURVES = ("true", "true_alone", "modelled", "held_out")
TRAINING_CURVES = ("chosen_log_prob", "kl", "dead_groups", "clip_rate", "entropy_1")
INTRODUCTION = (
    "The reward that is optimised is a model. If it rises while the held-out model, which has another seed, or the "
    "true reward does not, the policy has found lists that deceive the model: reward hacking."
)


def table_rows(facts: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return name, figure before, figure after, and change with its 95% interval, for each figure of alignment.json."""
    before, after = facts["before"]["metrics"], facts["after"]["metrics"]
    rows = []
    for name, title in TITLES.items():
        if name not in before or name not in after:
            continue
        change = ""
        if name in facts["changes"]:
            mean, low, high = facts["changes"][name]
            change = f"{mean:+.4f} ({low:+.4f} .. {high:+.4f})"
        rows.append((title, f"{before[name]:.4f}", f"{after[name]:.4f}", change))
    return rows


def print_alignment(facts: Mapping[str, Any], *, console: Console | None = None) -> None:
    """Print the figures before and after, and notes."""
    output = console or Console(width=None if Console().is_terminal else 120)
    table = Table()
    table.add_column("test requests")
    for column in ("before", "after", "change (95% interval)"):
        table.add_column(column, justify="right")
    for row in table_rows(facts):
        table.add_row(*row)
    output.print(table)
    for note in facts["notes"]:
        output.print(f"note: {note}", highlight=False)


def write_alignment_report(file: Path, facts: Mapping[str, Any]) -> None:
    """Write the page: the table, the curve of rewards relative to their start, and curves of training."""
    title = f"Alignment by {facts['method']} to {facts['reward']}"
    cells = "".join(
        f"<tr><td>{escape(name)}</td>" + "".join(f"<td>{escape(value)}</td>" for value in values) + "</tr>"
        for name, *values in table_rows(facts)
    )
    charts = [
        line_chart({name: _points(facts["epochs"], name)}, x="epoch", y=name)
        for name in TRAINING_CURVES
        if any(name in row for row in facts["epochs"])
    ]
    parts = [
        "<table><tr><th>test requests</th><th>before</th><th>after</th><th>change (95% interval)</th></tr>",
        f"{cells}</table>",
        "<h2>Rewards and recall over training</h2>",
        "<p>On validation requests; rewards relative to their values before training.</p>",
        _grid(
            [
                line_chart(_relative(facts["curve"]), x="epoch", y="relative change of rewards"),
                line_chart({"recall@10": _points(facts["curve"], "recall@10")}, x="epoch", y="recall@10"),
            ]
        ),
        "<h2>Training</h2>",
        _grid(charts),
        *(f"<p>{escape(note)}</p>" for note in facts["notes"]),
    ]
    page = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
    page += f"<style>{STYLE}</style></head><body><header><h1>{escape(title)}</h1><p>{escape(INTRODUCTION)}</p></header>"
    page += f"<main>{''.join(parts)}</main></body></html>\n"
    file.write_text(page, encoding="utf-8")


def _grid(charts: Sequence[str]) -> str:
    """Return charts side by side."""
    figures = "".join(f'<figure class="card">{chart}</figure>' for chart in charts)
    return f'<div class="grid">{figures}</div>'


def _relative(curve: Sequence[Mapping[str, float]]) -> dict[str, list[tuple[float, float]]]:
    """Return the curve of each reward, relative to its first value."""
    curves = {}
    for name in REWARD_CURVES:
        points = _points(curve, name)
        if points and points[0][1]:
            curves[TITLES[name]] = [(epoch, value / points[0][1] - 1) for epoch, value in points]
    return curves


def _points(rows: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    return [(row["epoch"], row[name]) for row in rows if name in row]
