"""HTML report: the scoreboard and the details behind it, as one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import polars as pl
import torch

from nextitem.core.identifiers import IdentifierTable
from nextitem.evaluation.evaluate import Evaluation
from nextitem.evaluation.generation import LEVEL_FIGURES
from nextitem.reporting import plots
from nextitem.reporting.report_style import STYLE
from nextitem.reporting.scoreboard import (
    COLUMNS,
    LEVEL_TITLES,
    PART_TITLES,
    Column,
    Mark,
    ReportRow,
    best_marks,
    column_marks,
    noise_marks,
    part_cells,
    slice_size,
)
from nextitem.reporting.tree_map import LABELLED, groups, tree_map

CURVES = ("recall", "ndcg", "set_recall", "coverage", "novelty", "diversity")
SLICE_METRICS = ("recall@10", "ndcg@10")
COLD_METRIC = "recall@10"


@dataclass(frozen=True)
class CustomerExample:
    """Titles of one customer's history and held-out items, and of the items that each model recommended."""

    name: str
    history: list[str]  # titles, oldest first
    held_out: list[str]  # titles of the events that follow the history
    recommended: dict[str, list[str]]  # model -> titles, best first


def write_report(
    path: Path,
    *,
    title: str,
    rows: Sequence[ReportRow],
    examples: Sequence[CustomerExample] = (),
    identifiers: IdentifierTable | None = None,
    item_titles: pl.Series | None = None,
    epoch_logs: Mapping[str, list[dict[str, float]]] = {},
    notes: Sequence[str] = (),
) -> None:
    """Write the report: scoreboard, curves, slices, stages, parts, generation, training, customers, codebooks, map.

    A section without data is skipped. The file contains no script and no address, and all text is escaped. The same
    arguments give the same bytes.

    Args:
        path: the file to write.
        title: title of the page.
        rows: rows of the scoreboard.
        examples: customers whose lists are printed.
        identifiers: semantic IDs, for the codebooks and the map.
        item_titles: titles of items 1..N, for the map.
        epoch_logs: name of a row -> its epochs, each with "epoch" and, if it was validated, "validation".
        notes: sentences that are printed below the title.

    """
    evaluations = [row.evaluation for row in rows]
    sections = [
        _head(title, evaluations, notes),
        _scoreboard(rows),
        _curves(evaluations),
        _slices(evaluations),
        _funnels(evaluations),
        _parts(evaluations),
        _generation(evaluations),
        _training(epoch_logs, [evaluation.model for evaluation in evaluations]),
        _customers(examples),
        "" if identifiers is None else _codebooks(identifiers),
        "" if identifiers is None else _tree(identifiers, item_titles),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}: recommenders compared</title><style>{STYLE}</style></head>"
        f"<body>{''.join(sections)}</body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _head(title: str, evaluations: Sequence[Evaluation], notes: Sequence[str]) -> str:
    """Return the title, the facts on requests and protocol, and the notes."""
    facts = ""
    if evaluations:
        first = evaluations[0]
        training_events = "training and validation events" if first.refit else "training events only"
        task = "ranks the full catalogue; hits are counted on items."
        if first.protocol == "impressions":
            task = "scores the logged impressions, without their slot."
        facts = (
            f"<p>{first.requests:,} test requests, protocol {escape(first.protocol)}, trained on "
            f"{training_events}. Every model {task}</p>"
        )
    note_lines = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<h1>{escape(title)}</h1>{facts}" + (f'<ul class="soft">{note_lines}</ul>' if note_lines else "")


def _scoreboard(rows: Sequence[ReportRow]) -> str:
    """Return the table of all models with its legend and verdict."""
    if not rows:
        return ""
    metric_columns = [column for column in COLUMNS if any(column.metric in row.evaluation.metrics for row in rows)]
    cold_slices = [row.evaluation.slices.get("cold", {}) for row in rows]
    num_cold_requests = max((int(part.get("requests", 0)) for part in cold_slices), default=0)
    cold_values = [part.get(COLD_METRIC) for part in cold_slices]
    titles = ["model", *(column.title for column in metric_columns)]
    titles += [f"cold {COLD_METRIC} (of {num_cold_requests:,})", "parameters", "train s", "p50 ms", "p99 ms"]
    columns = [_figures(rows, column) for column in metric_columns]
    columns.append(
        _table_cells(["-" if value is None else f"{value:.4f}" for value in cold_values], best_marks(cold_values))
    )
    for digits, costs in (
        (0, [float(row.parameters) for row in rows]),
        (1, [row.train_seconds for row in rows]),
        (2, [row.p50_ms for row in rows]),
        (2, [row.p99_ms for row in rows]),
    ):
        columns.append([f"<td>{value:,.{digits}f}</td>" for value in costs])
    names = [_legend_name(index, row.evaluation.model) for index, row in enumerate(rows)]
    lines = [f"<td>{name}</td>" + "".join(column[index] for column in columns) for index, name in enumerate(names)]
    return (
        f"<h2>Scoreboard</h2>{_table(titles, lines)}"
        '<p class="soft"><span class="best">★</span> best of its column. <b>≈</b> within noise of the best: the 95% '
        "interval of the difference, request by request (paired bootstrap), contains zero, so these requests do not "
        "show which of the two is better. Small figures are 95% intervals. p50 and p99 are the median and the 99th "
        f"percentile of the time of one request alone.</p>{_verdict(rows)}"
    )


def _figures(rows: Sequence[ReportRow], column: Column) -> list[str]:
    """Return the table cells of one metric, with intervals and marks."""
    cells, marks = [], column_marks(rows, column)
    for row, mark in zip(rows, marks, strict=True):
        value = row.evaluation.metrics.get(column.metric)
        text = "-" if value is None or value != value else f"{value:.{column.digits}f}"
        low, high = row.evaluation.intervals.get(column.metric, (float("nan"), float("nan")))
        interval_text = ""
        if low == low and column.higher_is_better:
            interval_text = f'<span class="between">{low:.{column.digits}f} .. {high:.{column.digits}f}</span>'
        cells.append(text + ("&nbsp;≈" if mark == "noise" else "") + interval_text)
    return _table_cells(cells, marks)


def _table_cells(cells: Sequence[str], marks: Sequence[Mark]) -> list[str]:
    """Return table cells in which the best figures are marked."""
    return [
        f'<td class="best">★&nbsp;{text}</td>' if mark == "best" else f"<td>{text}</td>"
        for text, mark in zip(cells, marks, strict=True)
    ]


def _verdict(rows: Sequence[ReportRow]) -> str:
    """Return a sentence: which models lead by the first metric, and which are within noise of them."""
    metric = COLUMNS[0].metric
    judged = [index for index, row in enumerate(rows) if row.evaluation.metrics.get(metric, float("nan")) >= 0]
    if len(judged) < 2:
        return ""
    best = max(rows[index].evaluation.metrics[metric] for index in judged)
    leaders = [index for index in judged if rows[index].evaluation.metrics[metric] == best]
    followers = [index for index, is_noise in noise_marks(rows, metric).items() if is_noise and index not in leaders]
    leader = f"{_names(rows, leaders)} {'leads' if len(leaders) == 1 else 'lead'} by {metric}"
    if followers:
        verb = "is" if len(followers) == 1 else "are"
        pronoun = "it" if len(leaders) == 1 else "them"
        return f"<p>{leader}; {_names(rows, followers)} {verb} within noise of {pronoun}.</p>"
    return f"<p>{leader}, beyond noise.</p>" if len(leaders) == 1 else f"<p>{leader}.</p>"


def _names(rows: Sequence[ReportRow], indices: Sequence[int]) -> str:
    """Return the names of some rows in bold, separated by commas."""
    return ", ".join(f"<b>{escape(rows[index].evaluation.model)}</b>" for index in indices)


def _curves(evaluations: Sequence[Evaluation]) -> str:
    """Return the plots of metrics over k."""
    charts = [plot for name in CURVES if (plot := plots.metric_curve(evaluations, name)) is not None]
    if not charts:
        return ""
    figures = "".join(f'<figure class="card">{plot}</figure>' for plot in charts)
    return (
        f'<h2>Metrics over k</h2>{_legend(evaluations)}<div class="grid">{figures}</div>'
        '<p class="soft">Bands are 95% bootstrap intervals over requests.</p>'
    )


def _slices(evaluations: Sequence[Evaluation]) -> str:
    """Return plots and table of the figures by slice."""
    charts = [plot for metric in SLICE_METRICS if (plot := plots.slices_chart(evaluations, metric)) is not None]
    if not charts:
        return ""
    figures = "".join(f'<figure class="card">{plot}</figure>' for plot in charts)
    lines = []
    for name in plots.slice_order(evaluations):
        parts = [evaluation.slices.get(name, {}) for evaluation in evaluations]
        num_requests = next(int(slice_size(part)) for part in parts if part)
        raw_values = [part.get(SLICE_METRICS[0]) for part in parts]
        values = [None if value is None or value != value else value for value in raw_values]
        cells = ["-" if value is None else f"{value:.4f}" for value in values]
        label = escape(name.replace("_", " "))
        lines.append(f"<td>{label}</td><td>{num_requests:,}</td>" + "".join(_table_cells(cells, best_marks(values))))
    titles = ["slice", "requests", *(evaluation.model for evaluation in evaluations)]
    return (
        f'<h2>Where each model is good</h2>{_legend(evaluations)}<div class="grid">{figures}</div>'
        '<p class="soft">Memorization: the step from the last item to the target occurs in training; generalization: '
        "it does not. Cold: the target does not occur in training. Popular, middle, rare: targets among the items "
        "with the first 20%, the next 60% and the last 20% of the training events, most popular first. History: number "
        f"of its events. In brackets: number of requests.</p><details><summary>{SLICE_METRICS[0]} in figures</summary>"
        f"{_table(titles, lines)}</details>"
    )


def _funnels(evaluations: Sequence[Evaluation]) -> str:
    """Return the funnel of each cascade: how many candidates and targets each stage keeps or drops."""
    parts = []
    for evaluation in evaluations:
        if evaluation.funnel is None:
            continue
        lines = [
            f"<td>{escape(stage['name'])}</td><td>{stage['candidates']:,.0f}</td><td>{stage['recall']:.4f}</td>"
            f"<td>{stage['kept']:.1%}</td><td>{stage['ndcg']:.4f}</td><td>{stage['p50_ms']:.1f}</td>"
            for stage in evaluation.funnel
        ]
        titles = ["stage", "items left", "targets among them", "share of received targets kept", "NDCG@10", "p50 ms"]
        parts.append(f"<h3>{escape(evaluation.model)}</h3>{_table(titles, lines)}")
    if not parts:
        return ""
    return (
        f"<h2>Stages</h2>{''.join(parts)}"
        '<p class="soft">The first stage receives every target. Times are medians of a request alone.</p>'
    )


def _parts(evaluations: Sequence[Evaluation]) -> str:
    """Return the parts of each blend: weights, figures of each part alone, and the gain of the blend."""
    tables = []
    for evaluation in evaluations:
        lines = ["".join(f"<td>{escape(cell)}</td>" for cell in part_cells(part)) for part in evaluation.parts or ()]
        if lines:
            tables.append(f"<h3>{escape(evaluation.model)}</h3>{_table(list(PART_TITLES), lines)}")
    if not tables:
        return ""
    return (
        f"<h2>Parts</h2>{''.join(tables)}"
        '<p class="soft">Figures of a part are those of its own lists. A gain is the figure of the blend minus that of '
        "the part, with the 95% interval (paired bootstrap over requests).</p>"
    )


def _generation(evaluations: Sequence[Evaluation]) -> str:
    """Return the generation quality of the models that generate codes, side by side."""
    reports = [
        (f"<td>{_legend_name(index, evaluation.model)}</td>", evaluation.generation)
        for index, evaluation in enumerate(evaluations)
        if evaluation.generation is not None
    ]
    if not reports:
        return ""
    depth = max(len(report["levels"]) for _, report in reports)
    lines, free_lines = [], []
    for name, report in reports:
        cells = ""
        for figure in LEVEL_FIGURES:
            shares = [f"{level[figure]:.1%}" for level in report["levels"]]
            cells += "".join(f"<td>{share}</td>" for share in shares + [""] * (depth - len(shares)))
        search = "guided" if report.get("guided") else "alone"
        lines.append(f"{name}<td>{search}</td><td>{report['beam_width']}</td>{cells}")
        recalls = [report[metric] for metric in ("free_recall@10", "repaired_recall@10", "recall@10")]
        free_cells = "".join(f"<td>{value:.4f}</td>" for value in recalls)
        free_lines.append(f"{name}<td>{report['invalid@10']:.1%}</td>{free_cells}")
    groups = "".join(f'<th colspan="{depth}">{title}</th>' for title in LEVEL_TITLES)
    levels = [f"level {number}" for number in range(1, depth + 1)] * len(LEVEL_TITLES)
    by_level = _table(["model", "search", "beams", *levels], lines, groups=f'<th colspan="3"></th>{groups}')
    num_requests = max(report["requests"] for _, report in reports)
    free_titles = ["model", "no item among the first 10 sequences", "recall@10, those dropped"]
    free_titles += ["recall@10, those repaired", "recall@10 with the constraint"]
    return (
        f"<h2>Generation of codes</h2>{by_level}"
        '<p class="soft">Training predicts a code after the true codes, a search after the codes that it generated '
        "itself: the columns show how far the two differ. The last group is the share of targets whose codes, up to "
        f"this level, are among the beams. Measured on {num_requests:,} requests.</p>"
        f"{_table(free_titles, free_lines)}"
        '<p class="soft">Without the constraint to real items, and without a guide, some sequences are no item. They '
        "are dropped, or replaced by the items below their longest existing prefix. The last column is of the search "
        "with the constraint, by codes alone.</p>"
    )


def _training(epoch_logs: Mapping[str, list[dict[str, float]]], models: Sequence[str]) -> str:
    """Return the plot of validation by epoch."""
    plot = plots.training_curve(epoch_logs, models)
    if plot is None:
        return ""
    names = [name for name in epoch_logs if name in models]
    legend = "".join(f"<li>{_legend_name(models.index(name), name)}</li>" for name in names)
    return (
        f'<h2>Training</h2><ul class="legend">{legend}</ul><div class="grid"><figure class="card">{plot}</figure></div>'
        '<p class="soft">The best epoch is selected on validation requests, never on test requests.</p>'
    )


def _customers(examples: Sequence[CustomerExample]) -> str:
    """Return the history, the held-out items and the lists of each example customer."""
    parts = []
    for example in examples:
        targets = set(example.held_out)
        cards = _titles("history, newest last", example.history) + _titles(
            "held-out items", example.held_out, marked=targets
        )
        for model, titles in example.recommended.items():
            cards += _titles(model, titles, marked=targets)
        parts.append(f'<h3>{escape(example.name)}</h3><div class="grid narrow">{cards}</div>')
    if not parts:
        return ""
    legend = '<p class="soft">Held-out items, which the customer chose next, are <span class="hit">marked</span>.</p>'
    return f"<h2>Customers</h2>{legend}{''.join(parts)}"


def _titles(head: str, titles: Sequence[str], *, marked: set[str] | frozenset[str] = frozenset()) -> str:
    """Return a card with a heading and a list of titles, of which those in `marked` are highlighted."""
    lines = "".join(
        f'<li><span class="hit">{escape(title)}</span></li>' if title in marked else f"<li>{escape(title)}</li>"
        for title in titles
    )
    return f'<div class="card"><h3>{escape(head)}</h3><ol>{lines or "<li>nothing</li>"}</ol></div>'


def _codebooks(table: IdentifierTable) -> str:
    """Return plots and table of how often the codes of each level are used."""
    figures, lines = "", []
    for level, size in enumerate(table.codebook_sizes):
        counts = torch.bincount(table.codes[1:, level].long(), minlength=size).double()
        shares = counts[counts > 0] / counts.sum()
        effective = float(torch.exp(-(shares * shares.log()).sum()))
        figures += f'<figure class="card">{plots.codebook_usage(table, level)}</figure>'
        lines.append(
            f"<td>level {level + 1}</td><td>{size:,}</td><td>{len(shares):,}</td><td>{effective:,.1f}</td>"
            f"<td>{int(counts.max()):,}</td>"
        )
    titles = ["level", "codes", "used", "effective codes", "items at the most used code"]
    name = f" ({escape(table.tokenizer)})" if table.tokenizer else ""
    return (
        f'<h2>Codebooks{name}</h2><div class="grid">{figures}</div>{_table(titles, lines)}'
        '<p class="soft">Effective codes: the number of codes that, each used equally often, would have the same '
        "entropy. A last level that only separates items of equal codes is used little, as it should be.</p>"
    )


def _tree(table: IdentifierTable, titles: pl.Series | None) -> str:
    """Return the treemap of the semantic IDs with the table of its largest groups."""
    tree = groups(table, titles)
    lines = [
        f'<td><span class="swatch" style="background:hsl({index * 137 % 360} 55% 50%)"></span>{group.code}</td>'
        f'<td>{group.items:,}</td><td>{len(group.cells):,}</td><td class="words">{escape("; ".join(group.titles))}</td>'
        for index, group in enumerate(tree[:LABELLED])
    ]
    return (
        f"<h2>Map of the semantic IDs</h2><figure>{tree_map(tree)}<figcaption>{len(tree):,} first codes in colours, "
        "their second codes as cells; areas are numbers of items.</figcaption></figure>"
        f"{_table(['first code', 'items', 'second codes', 'for example'], lines)}"
    )


def _legend(evaluations: Sequence[Evaluation]) -> str:
    """Return the list of all models with their markers."""
    names = "".join(f"<li>{_legend_name(index, evaluation.model)}</li>" for index, evaluation in enumerate(evaluations))
    return f'<ul class="legend">{names}</ul>'


def _legend_name(index: int, name: str) -> str:
    """Return a model's name behind the marker of row `index`."""
    return f'<span class="mark" style="color:{plots.color(index)}">{plots.text_marker(index)}</span>{escape(name)}'


def _table(titles: Sequence[str], lines: Sequence[str], *, groups: str = "") -> str:
    """Return a table of column titles and rows of cells; `groups` are the header cells above the titles."""
    head = f"<tr>{groups}</tr>" * bool(groups) + f"<tr>{''.join(f'<th>{escape(title)}</th>' for title in titles)}</tr>"
    return f'<div class="wide"><table>{head}{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'
