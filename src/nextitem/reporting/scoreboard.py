"""The scoreboard: models side by side, and what these requests cannot tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from nextitem.core.identifiers import IdentifierTable
from nextitem.evaluation.evaluate import Evaluation
from nextitem.evaluation.intervals import paired_difference


@dataclass(frozen=True)
class ReportRow:
    """One run on the scoreboard. `evaluation.model` names the row, so that no two rows share a name."""

    evaluation: Evaluation
    parameters: int  # trained numbers
    train_seconds: float
    p50_ms: float  # of one request alone
    p99_ms: float
    model: str = ""  # name of the model; empty: that of the row
    folder: str = ""  # of the run

    @property
    def name(self) -> str:
        """What tables, lists and curves call the row: the model, and the run if there are several of it."""
        return self.evaluation.model

    def to_json(self) -> dict[str, Any]:
        """The public format of a row of scoreboard.json."""
        return {
            **self.evaluation.to_json(),
            "model": self.model or self.name,
            "name": self.name,
            "run": self.folder,
            "parameters": self.parameters,
            "train_seconds": self.train_seconds,
            "p50_ms": self.p50_ms,
            "p99_ms": self.p99_ms,
        }


Mark = Literal["best", "noise", ""]  # what a figure is within its column


@dataclass(frozen=True)
class Column:
    """A column of the printed scoreboard."""

    title: str
    metric: str
    digits: int
    higher_is_better: bool | None  # None: neither is better


COLUMNS = (
    Column("recall@10", "recall@10", 4, True),
    Column("ndcg@10", "ndcg@10", 4, True),
    Column("set recall@10", "set_recall@10", 4, True),
    Column("coverage", "coverage@10", 3, True),
    Column("novelty", "novelty@10", 1, None),
    Column("diversity", "diversity@10", 3, None),
    Column("auc", "auc", 4, True),
    Column("gauc", "gauc", 4, True),
    Column("log-loss", "log_loss", 4, False),
)


def scoreboard_json(rows: Sequence[ReportRow]) -> dict[str, Any]:
    """The public format of scoreboard.json."""
    return {"rows": [row.to_json() for row in rows]}


def noise_marks(rows: Sequence[ReportRow], metric: str) -> dict[int, bool]:
    """For each row but the best: can its distance to the best be chance? (95% paired bootstrap over requests.)

    Empty where the metric is no mean over requests, or some row lacks it.
    """
    if not rows or any(metric not in row.evaluation.values for row in rows):
        return {}
    known = [index for index, row in enumerate(rows) if row.evaluation.metrics[metric] >= 0]  # NaN is not
    if not known:
        return {}
    best = max(known, key=lambda index: rows[index].evaluation.metrics[metric])
    reference = rows[best].evaluation.values[metric]
    return {
        index: paired_difference(reference, row.evaluation.values[metric]).is_noise
        for index, row in enumerate(rows)
        if index in known and index != best
    }


def print_scoreboard(rows: Sequence[ReportRow], *, console: Console | None = None) -> None:
    """The scoreboard on the terminal; * marks a column's best, ~ what lies within noise of it."""
    first = rows[0].evaluation
    used = [column for column in COLUMNS if any(column.metric in row.evaluation.metrics for row in rows)]
    refit = "training and validation events" if first.refit else "training events only"
    table = Table(
        title=f"protocol {first.protocol}, {first.requests:,} requests, learnt from {refit}", title_justify="left"
    )
    table.add_column("model")
    for column in used:
        table.add_column(column.title, justify="right")
    for title in ("cold recall@10", "parameters", "train s", "p50 ms", "p99 ms"):
        table.add_column(title, justify="right")
    cells = [_cells(rows, column) for column in used]
    for index, row in enumerate(rows):
        cold = row.evaluation.slices.get("cold", {}).get("recall@10")
        table.add_row(
            row.evaluation.model,
            *[column[index] for column in cells],
            "-" if cold is None else f"{cold:.4f}",
            f"{row.parameters:,}",
            f"{row.train_seconds:.1f}",
            f"{row.p50_ms:.1f}",
            f"{row.p99_ms:.1f}",
        )
    out = console or Console(width=None if Console().is_terminal else 160)
    out.print(table)
    out.print("* best   ~ within noise of the best (95% paired bootstrap over requests)", highlight=False)
    for row in rows:
        for note in row.evaluation.notes:
            out.print(note, highlight=False)
        if row.evaluation.funnel is not None:
            print_funnel(row.evaluation.funnel, title=f"{row.evaluation.model}: funnel", console=out)


def column_marks(rows: Sequence[ReportRow], column: Column) -> list[Mark]:
    """Mark the best rows of a column and those within noise of the best, for the terminal and the report alike."""
    values = [row.evaluation.metrics.get(column.metric) for row in rows]
    if column.higher_is_better is None:
        return [""] * len(rows)
    marks = best_marks(values, higher_is_better=column.higher_is_better)
    noise = noise_marks(rows, column.metric) if column.higher_is_better else {}
    return ["noise" if noise.get(place, False) and not mark else mark for place, mark in enumerate(marks)]


def best_marks(values: Sequence[float | None], *, higher_is_better: bool = True) -> list[Mark]:
    """Mark the best of some values; None and NaN are not known, and a best value of 0 by which all fail is no best."""
    known = [value for value in values if value is not None and value == value]
    best = (max(known) if higher_is_better else min(known)) if known else None
    if best == 0 and higher_is_better:
        best = None
    return ["best" if value is not None and value == best else "" for value in values]


def slice_size(part: Mapping[str, float]) -> int:
    """How many requests a slice holds; of a ranker's figures, how many groups."""
    return int(part.get("requests", part.get("groups", 0)))


def _cells(rows: Sequence[ReportRow], column: Column) -> list[str]:
    signs = {"best": "*", "noise": "~", "": " "}
    cells = []
    for row, mark in zip(rows, column_marks(rows, column), strict=True):
        value = row.evaluation.metrics.get(column.metric, float("nan"))
        cells.append("- " if value != value else f"{value:.{column.digits}f}{signs[mark]}")
    return cells


def print_evaluation(evaluation: Evaluation, *, console: Console | None = None) -> None:
    """One model's figures and slices on the terminal."""
    out = console or Console()
    refit = "training and validation events" if evaluation.refit else "training events only"
    table = Table(
        title=f"{evaluation.model}: protocol {evaluation.protocol}, {evaluation.requests:,} requests, {refit}"
    )
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95% interval", justify="right")
    for name, value in evaluation.metrics.items():
        low, high = evaluation.intervals.get(name, (None, None))
        between = "" if low is None or low != low else f"{low:.4f} .. {high:.4f}"
        table.add_row(name, f"{value:.4f}", between)
    out.print(table)
    for note in evaluation.notes:
        out.print(note, highlight=False)
    parts = Table(title="slices")
    parts.add_column("slice")
    for title in ("requests", "recall@10", "ndcg@10"):
        parts.add_column(title, justify="right")
    for name, part in evaluation.slices.items():
        figures = [f"{part[metric]:.4f}" if metric in part else "-" for metric in ("recall@10", "ndcg@10")]
        parts.add_row(name, f"{slice_size(part):,}", *figures)
    out.print(parts)
    if evaluation.funnel is not None:
        print_funnel(evaluation.funnel, console=out)
    if evaluation.generation is not None:
        print_generation(evaluation.generation, console=out)


def print_funnel(stages: Sequence[Mapping[str, Any]], *, title: str = "funnel", console: Console | None = None) -> None:
    """What each stage of a cascade keeps, on the terminal."""
    out = console or Console()
    shown = Table(title=title)
    shown.add_column("stage")
    for title in ("candidates", "targets among them", "kept of what came in", "ndcg@10", "p50 ms"):
        shown.add_column(title, justify="right")
    for stage in stages:
        shown.add_row(
            stage["name"],
            f"{stage['candidates']:.0f}",
            f"{stage['recall']:.4f}",
            f"{stage['kept']:.1%}",
            f"{stage['ndcg']:.4f}",
            f"{stage['p50_ms']:.1f}",
        )
    out.print(shown)


def print_generation(report: Mapping[str, Any], *, console: Console | None = None) -> None:
    """How a generator spells, on the terminal."""
    out = console or Console()
    shown = Table(title=f"spelling, {report['requests']:,} requests, {report['beam_width']} beams")
    for title in ("level", "right after the true codes", "right after its own", "true codes among the beams"):
        shown.add_column(title, justify="right")
    for number, level in enumerate(report["levels"], start=1):
        shown.add_row(str(number), *(f"{value:.4f}" for value in level.values()))
    out.print(shown)
    for name, value in report.items():
        if "@" in name:
            out.print(f"{name}: {value:.4f}", highlight=False)


def print_quality(table: IdentifierTable, *, console: Console | None = None) -> None:
    """The quality report of semantic IDs on the terminal."""
    out = console or Console()
    report = table.report or {}
    shown = Table(title=f"{table.tokenizer}: {report.get('items', table.num_items):,} items")
    for title in ("level", "codes", "used", "usage", "entropy (share)", "gini"):
        shown.add_column(title, justify="right")
    for number, level in enumerate(report.get("levels", []), start=1):
        shown.add_row(
            str(number),
            str(level["codebook_size"]),
            str(level["used"]),
            f"{level['usage']:.1%}",
            f"{level['entropy_bits']:.2f} bits ({level['entropy_share']:.0%})",
            f"{level['gini']:.2f}",
        )
    out.print(shown)
    shares = report.get("neighbours_sharing_prefix") or []
    facts = [
        f"collisions before resolution: {report.get('collision_rate', 0):.1%} of items, "
        f"largest group {report.get('largest_group', 1)}",
    ]
    if "reconstruction_error" in report:  # codes from elsewhere have none
        facts.append(f"reconstruction error: {report['reconstruction_error']:.3f} of the variance")
    facts += [
        f"nearest neighbours that share the first {depth} code{'s' if depth > 1 else ''}: {share:.1%}"
        for depth, share in enumerate(shares, start=1)
    ]
    for fact in facts:
        out.print(fact, highlight=False)
