"""Scoreboard: figures of models side by side, with marks of the best and of those within noise of it."""

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
    """One run on the scoreboard. `evaluation.model` is the name of the row; no two rows have the same."""

    evaluation: Evaluation
    parameters: int  # number of trained values
    train_seconds: float
    p50_ms: float  # median milliseconds of one request alone
    p99_ms: float  # 99th percentile of the same
    model: str = ""  # name of the model; empty: the name of the row
    folder: str = ""  # folder of the run
    cpu_ms: float = float("nan")  # mean milliseconds of processor time of one request alone, summed over cores

    @property
    def name(self) -> str:
        """Name of the row in tables, lists and curves: the model, with the run if the model has several rows."""
        return self.evaluation.model

    def to_json(self) -> dict[str, Any]:
        """Return the public format of a row of scoreboard.json."""
        return {
            **self.evaluation.to_json(),
            "model": self.model or self.name,
            "name": self.name,
            "run": self.folder,
            "parameters": self.parameters,
            "train_seconds": self.train_seconds,
            "p50_ms": self.p50_ms,
            "p99_ms": self.p99_ms,
            "cpu_ms": self.cpu_ms if self.cpu_ms >= 0 else None,
        }


Mark = Literal["best", "noise", ""]  # mark of a figure within its column


@dataclass(frozen=True)
class Column:
    """A metric column of the scoreboard."""

    title: str
    metric: str
    digits: int  # after the decimal point
    higher_is_better: bool | None  # None: neither direction is better


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
    """Return the public format of scoreboard.json."""
    return {"rows": [row.to_json() for row in rows]}


def noise_marks(rows: Sequence[ReportRow], metric: str) -> dict[int, bool]:
    """Return for each row but the best whether its distance to the best is within noise: row index -> bool.

    Judged by a 95% paired bootstrap over requests. Empty if the metric is no mean over requests, or if a row lacks it.
    """
    if not rows or any(metric not in row.evaluation.values for row in rows):
        return {}
    defined = [index for index, row in enumerate(rows) if row.evaluation.metrics[metric] >= 0]  # NaN is not
    if not defined:
        return {}
    best = max(defined, key=lambda index: rows[index].evaluation.metrics[metric])
    reference = rows[best].evaluation.values[metric]
    return {
        index: paired_difference(reference, row.evaluation.values[metric]).is_noise
        for index, row in enumerate(rows)
        if index in defined and index != best
    }


def print_scoreboard(rows: Sequence[ReportRow], *, console: Console | None = None) -> None:
    """Print the scoreboard; * marks the best of a column, ~ figures within noise of it."""
    first = rows[0].evaluation
    metric_columns = [column for column in COLUMNS if any(column.metric in row.evaluation.metrics for row in rows)]
    training_events = "training and validation events" if first.refit else "training events only"
    table = Table(
        title=f"protocol {first.protocol}, {first.requests:,} requests, trained on {training_events}",
        title_justify="left",
    )
    table.add_column("model")
    for column in metric_columns:
        table.add_column(column.title, justify="right")
    for title in ("cold recall@10", "parameters", "train s", "p50 ms", "p99 ms"):
        table.add_column(title, justify="right")
    cells = [_cells(rows, column) for column in metric_columns]
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
    output = console or Console(width=None if Console().is_terminal else 160)
    output.print(table)
    output.print("* best   ~ within noise of the best (95% paired bootstrap over requests)", highlight=False)
    for row in rows:
        for note in row.evaluation.notes:
            output.print(note, highlight=False)
        if row.evaluation.funnel is not None:
            print_funnel(row.evaluation.funnel, title=f"{row.evaluation.model}: funnel", console=output)
        if row.evaluation.parts is not None:
            print_parts(row.evaluation.parts, title=f"{row.evaluation.model}: parts", console=output)


def column_marks(rows: Sequence[ReportRow], column: Column) -> list[Mark]:
    """Mark the best rows of a column and those within noise of the best, both for the terminal and for the report."""
    values = [row.evaluation.metrics.get(column.metric) for row in rows]
    if column.higher_is_better is None:
        return [""] * len(rows)
    marks = best_marks(values, higher_is_better=column.higher_is_better)
    noise = noise_marks(rows, column.metric) if column.higher_is_better else {}
    return ["noise" if noise.get(index, False) and not mark else mark for index, mark in enumerate(marks)]


def best_marks(values: Sequence[float | None], *, higher_is_better: bool = True) -> list[Mark]:
    """Return the mark of each value, "best" or "".

    None and NaN are never best. If higher is better and the best value is 0, all fail, and none is marked.
    """
    defined = [value for value in values if value is not None and value == value]
    best = (max(defined) if higher_is_better else min(defined)) if defined else None
    if best == 0 and higher_is_better:
        best = None
    return ["best" if value is not None and value == best else "" for value in values]


def slice_size(part: Mapping[str, float]) -> int:
    """Return the number of requests of a slice, or the number of groups for a ranker."""
    return int(part.get("requests", part.get("groups", 0)))


def _cells(rows: Sequence[ReportRow], column: Column) -> list[str]:
    """Return the figures of a column with their marks, for the terminal."""
    mark_signs = {"best": "*", "noise": "~", "": " "}
    cells = []
    for row, mark in zip(rows, column_marks(rows, column), strict=True):
        value = row.evaluation.metrics.get(column.metric, float("nan"))
        cells.append("- " if value != value else f"{value:.{column.digits}f}{mark_signs[mark]}")
    return cells


def print_evaluation(evaluation: Evaluation, *, console: Console | None = None) -> None:
    """Print the figures and slices of one model, and its funnel, parts and generation quality if there are any."""
    output = console or Console()
    training_events = "training and validation events" if evaluation.refit else "training events only"
    table = Table(
        title=f"{evaluation.model}: protocol {evaluation.protocol}, {evaluation.requests:,} requests, {training_events}"
    )
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95% interval", justify="right")
    for name, value in evaluation.metrics.items():
        low, high = evaluation.intervals.get(name, (None, None))
        interval_text = "" if low is None or low != low else f"{low:.4f} .. {high:.4f}"
        table.add_row(name, f"{value:.4f}", interval_text)
    output.print(table)
    for note in evaluation.notes:
        output.print(note, highlight=False)
    parts = Table(title="slices")
    parts.add_column("slice")
    for title in ("requests", "recall@10", "ndcg@10"):
        parts.add_column(title, justify="right")
    for name, part in evaluation.slices.items():
        figures = [f"{part[metric]:.4f}" if metric in part else "-" for metric in ("recall@10", "ndcg@10")]
        parts.add_row(name, f"{slice_size(part):,}", *figures)
    output.print(parts)
    if evaluation.funnel is not None:
        print_funnel(evaluation.funnel, console=output)
    if evaluation.parts is not None:
        print_parts(evaluation.parts, console=output)
    if evaluation.generation is not None:
        print_generation(evaluation.generation, console=output)


def print_funnel(stages: Sequence[Mapping[str, Any]], *, title: str = "funnel", console: Console | None = None) -> None:
    """Print the funnel of a cascade: candidates, targets, order and time of each stage."""
    output = console or Console()
    table = Table(title=title)
    table.add_column("stage")
    for title in ("candidates", "targets among them", "share of received targets kept", "ndcg@10", "p50 ms"):
        table.add_column(title, justify="right")
    for stage in stages:
        table.add_row(
            stage["name"],
            f"{stage['candidates']:.0f}",
            f"{stage['recall']:.4f}",
            f"{stage['kept']:.1%}",
            f"{stage['ndcg']:.4f}",
            f"{stage['p50_ms']:.1f}",
        )
    output.print(table)


PART_METRICS = ("recall@10", "ndcg@10")


def part_cells(part: Mapping[str, Any]) -> list[str]:
    """Return the printed figures of a part of a blend: name, weight, way to probabilities, its own figures, gains."""
    temperature = "" if part["temperature"] == 1 else f", temperature {part['temperature']:g}"
    gains = [part["gains"][metric] for metric in PART_METRICS]
    return [
        part["name"],
        f"{part['weight']:.3g}",
        f"{part['transform']}{temperature}",
        *(f"{part['metrics'][metric]:.4f}" for metric in PART_METRICS),
        *(f"{mean:+.4f} ({low:+.4f} .. {high:+.4f})" for mean, low, high in gains),
    ]


PART_TITLES = ("part", "weight", "probabilities", *PART_METRICS, *(f"gain in {metric}" for metric in PART_METRICS))


def part_line(part: Mapping[str, Any]) -> str:
    """Return one line on a part of a blend: weight, figures of the part alone, and the gain of the blend."""
    name, weight, way, *figures = part_cells(part)
    alone = ", ".join(f"{metric} {figure}" for metric, figure in zip(PART_METRICS, figures, strict=False))
    gains = ", ".join(f"{metric} {gain}" for metric, gain in zip(PART_METRICS, figures[2:], strict=True))
    return f"  {name}: weight {weight} ({way}); alone {alone}; blend minus {name}: {gains}"


def print_parts(parts: Sequence[Mapping[str, Any]], *, title: str = "parts", console: Console | None = None) -> None:
    """Print a line for each part of a blend."""
    output = console or Console()
    output.print(title, highlight=False)
    for part in parts:
        output.print(part_line(part), highlight=False, soft_wrap=True)


LEVEL_TITLES = ("correct after the true codes", "correct after its own codes", "true codes among the beams")


def print_generation(report: Mapping[str, Any], *, console: Console | None = None) -> None:
    """Print the generation quality of a model that generates codes."""
    output = console or Console()
    guided = ", guided" if report.get("guided") else ""
    table = Table(title=f"generation of codes, {report['requests']:,} requests, {report['beam_width']} beams{guided}")
    for title in ("level", *LEVEL_TITLES):
        table.add_column(title, justify="right")
    for number, level in enumerate(report["levels"], start=1):
        table.add_row(str(number), *(f"{value:.4f}" for value in level.values()))
    output.print(table)
    for name, value in report.items():
        if "@" in name:
            output.print(f"{name}: {value:.4f}", highlight=False)


def print_quality(identifiers: IdentifierTable, *, console: Console | None = None) -> None:
    """Print the quality report of semantic IDs."""
    output = console or Console()
    report = identifiers.report or {}
    table = Table(title=f"{identifiers.tokenizer}: {report.get('items', identifiers.num_items):,} items")
    for title in ("level", "codes", "used", "usage", "entropy (share)", "gini"):
        table.add_column(title, justify="right")
    for number, level in enumerate(report.get("levels", []), start=1):
        table.add_row(
            str(number),
            str(level["codebook_size"]),
            str(level["used"]),
            f"{level['usage']:.1%}",
            f"{level['entropy_bits']:.2f} bits ({level['entropy_share']:.0%})",
            f"{level['gini']:.2f}",
        )
    output.print(table)
    facts = [
        f"collisions before resolution: {report.get('collision_rate', 0):.1%} of items, "
        f"largest group {report.get('largest_group', 1)}",
    ]
    if "reconstruction_error" in report:  # imported codes have none
        facts.append(f"reconstruction error: {report['reconstruction_error']:.3f} of the variance")
    for key, pairs in (
        ("neighbours_sharing_prefix", "nearest neighbours"),
        ("transitions_sharing_prefix", "successive items of a user"),
    ):
        facts += [
            f"{pairs} that share the first {depth} code{'s' if depth > 1 else ''}: {share:.1%}"
            for depth, share in enumerate(report.get(key) or [], start=1)
        ]
    if report.get("largest_exposure"):
        multiples = ", ".join(f"{multiple:.2f}" for multiple in report["largest_exposure"])
        facts.append(f"exposure of the largest cluster of each level: {multiples} times the mean")
    for fact in facts:
        output.print(fact, highlight=False)
