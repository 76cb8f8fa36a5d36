"""HTML report: the scoreboard and the details behind it, as one self-contained page."""

from __future__ import annotations

import re
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
from nextitem.reporting.elements import cell, legend, legend_name, table
from nextitem.reporting.fronts import fronts
from nextitem.reporting.report_script import POLICY, SCRIPT
from nextitem.reporting.report_style import STYLE
from nextitem.reporting.scoreboard import (
    COLUMNS,
    LEVEL_TITLES,
    PART_TITLES,
    Column,
    ReportRow,
    best_marks,
    column_marks,
    part_cells,
    slice_size,
)
from nextitem.reporting.summary import amount, cost_per_thousand, summary
from nextitem.reporting.tree_map import LABELLED, groups, tree_map

CURVES = ("recall", "ndcg", "set_recall", "coverage", "novelty", "diversity")
SLICE_METRICS = ("recall@10", "ndcg@10")
COLD_METRIC = "recall@10"
PRICE_PER_CORE_HOUR = 0.04  # about that of a core rented by the hour


@dataclass(frozen=True)
class ListedItem:
    """One item of a recommended list."""

    title: str
    is_hit: bool = False  # whether it is one of the customer's held-out items
    channel: str = ""  # for a cascade, the channel that retrieved it


@dataclass(frozen=True)
class CustomerExample:
    """Titles of one customer's history and held-out items, and the items that each model recommended."""

    name: str
    history: list[str]  # titles, oldest first
    held_out: list[str]  # titles of the events that follow the history
    recommended: dict[str, list[ListedItem]]  # model -> items, best first


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
    price_per_core_hour: float = PRICE_PER_CORE_HOUR,
) -> None:
    """Write the report: summary, scoreboard, fronts, curves, slices, stages, parts, calibration, generation and more.

    A section without data is skipped. The file loads nothing and contains no address. Its one script sorts tables; the
    page is complete without it. All text is escaped. The same arguments give the same bytes.

    Args:
        path: the file to write.
        title: title of the page.
        rows: rows of the scoreboard.
        examples: customers whose lists are printed.
        identifiers: semantic IDs, for the codebooks and the map.
        item_titles: titles of items 1..N, for the map.
        epoch_logs: name of a row -> its epochs, each with "epoch" and, if it was validated, "validation".
        notes: sentences that are printed below the summary.
        price_per_core_hour: price of one processor core for an hour, in any currency, from which costs are computed.

    """
    evaluations = [row.evaluation for row in rows]
    names = [evaluation.model for evaluation in evaluations]
    sections = [
        summary(rows, price_per_core_hour=price_per_core_hour) + _notes(notes),
        _scoreboard(rows, price_per_core_hour),
        fronts(evaluations),
        _curves(evaluations),
        _slices(evaluations),
        _funnels(evaluations),
        _parts(evaluations),
        _calibration(evaluations),
        _generation(evaluations),
        _training(epoch_logs, names),
        _customers(examples, names),
        "" if identifiers is None else _codebooks(identifiers),
        "" if identifiers is None else _tree(identifiers, item_titles),
    ]
    numbered = [(f"section-{number}", section) for number, section in enumerate(sections) if section]
    links = "".join(
        f'<a href="#{anchor}">{heading[1]}</a>'
        for anchor, section in numbered
        if (heading := re.match("<h2>([^<(]*)", section))
    )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}: recommenders compared</title><style>{STYLE}</style></head>"
        f'<body><header>{_head(title, evaluations)}<nav aria-label="sections">{links}</nav></header><main>'
        + "".join(f'<section id="{anchor}">{section}</section>' for anchor, section in numbered)
        + f"</main><script>{SCRIPT}</script></body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _head(title: str, evaluations: Sequence[Evaluation]) -> str:
    """Return the title and the facts on requests and protocol."""
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
    return f"<h1>{escape(title)}</h1>{facts}"


def _notes(notes: Sequence[str]) -> str:
    """Return the notes on data, protocol and models."""
    lines = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="soft">{lines}</ul>' if lines else ""


def _scoreboard(rows: Sequence[ReportRow], price_per_core_hour: float) -> str:
    """Return the table of all models with its legend."""
    if not rows:
        return ""
    metric_columns = [column for column in COLUMNS if any(column.metric in row.evaluation.metrics for row in rows)]
    names = [legend_name(index, row.evaluation.model) for index, row in enumerate(rows)]
    columns = {
        "model": [f'<td data-value="{escape(row.name)}">{name}</td>' for row, name in zip(rows, names, strict=True)]
    }
    columns |= {column.title: _figures(rows, column) for column in metric_columns}
    cold_slices = [row.evaluation.slices.get("cold", {}) for row in rows]
    num_cold_requests = max((int(part.get("requests", 0)) for part in cold_slices), default=0)
    cold_values = [part.get(COLD_METRIC) for part in cold_slices]
    cold_title = f"cold {COLD_METRIC} (of {num_cold_requests:,})"
    if num_cold_requests:
        columns[cold_title] = [
            cell("-" if value is None else f"{value:.4f}", value=value, is_best=mark == "best")
            for value, mark in zip(cold_values, best_marks(cold_values), strict=True)
        ]
    for title, digits, costs in (
        ("parameters", 0, [float(row.parameters) for row in rows]),
        ("train s", 1, [row.train_seconds for row in rows]),
        ("p50 ms", 2, [row.p50_ms for row in rows]),
        ("p99 ms", 2, [row.p99_ms for row in rows]),
    ):
        columns[title] = [cell(f"{value:,.{digits}f}", value=value) for value in costs]
    prices = [cost_per_thousand(row, price_per_core_hour) for row in rows]
    if any(price is not None for price in prices):
        columns["cost of 1,000"] = [cell("-" if price is None else amount(price), value=price) for price in prices]
    lines = ["".join(cells) for cells in zip(*columns.values(), strict=True)]
    descending = [column.title for column in metric_columns if column.higher_is_better is not False] + [cold_title]
    return (
        f"<h2>Scoreboard</h2>{table(list(columns), lines, caption='scoreboard', descending=descending)}"
        '<p class="soft"><span class="best">★</span> best of its column. <b>≈</b> within noise of the best: the 95% '
        "interval of the difference, request by request (paired bootstrap), contains zero. The marks look at one pair "
        "at a time; the summary adjusts for the number of pairs, so it calls fewer differences real. Small figures are "
        "95% intervals. p50 and p99 are the median and the 99th percentile of the time of one request alone, measured "
        "after training on this machine. Cost of 1,000: processor time of 1,000 requests, one at a time, at a price of "
        f"{amount(price_per_core_hour)} for an hour of one core, without an accelerator and without memory. Press a "
        "title to sort.</p>"
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
        html = text + "&nbsp;≈" * (mark == "noise") + interval_text
        cells.append(cell(html, value=value, is_best=mark == "best"))
    return cells


def _curves(evaluations: Sequence[Evaluation]) -> str:
    """Return the plots of metrics over k."""
    charts = [plot for name in CURVES if (plot := plots.metric_curve(evaluations, name)) is not None]
    if not charts:
        return ""
    figures = "".join(f'<figure class="card">{plot}</figure>' for plot in charts)
    return (
        f'<h2>Metrics over k</h2>{legend(_models(evaluations))}<div class="grid">{figures}</div>'
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
        cells = [
            cell("-" if value is None else f"{value:.4f}", value=value, is_best=mark == "best")
            for value, mark in zip(values, best_marks(values), strict=True)
        ]
        label = escape(name.replace("_", " "))
        lines.append(f"<td>{label}</td>{cell(f'{num_requests:,}', value=num_requests)}{''.join(cells)}")
    titles = ["slice", "requests", *(evaluation.model for evaluation in evaluations)]
    return (
        f'<h2>Where each model is good</h2>{legend(_models(evaluations))}<div class="grid">{figures}</div>'
        '<p class="soft">Memorization: the step from the last item to the target occurs in training; generalization: '
        "it does not. Cold: the target does not occur in training. Popular, middle, rare: targets among the items "
        "with the first 20%, the next 60% and the last 20% of the training events, most popular first. History: number "
        f"of its events. In brackets: number of requests.</p><details><summary>{SLICE_METRICS[0]} in figures</summary>"
        f"{table(titles, lines, caption='figures by slice', descending=titles[1:])}</details>"
    )


def _funnels(evaluations: Sequence[Evaluation]) -> str:
    """Return the funnel of each cascade: how many candidates and targets each stage keeps or loses."""
    parts = []
    for evaluation in evaluations:
        if evaluation.funnel is None:
            continue
        before = [1.0, *(stage["recall"] for stage in evaluation.funnel)]
        losses = [
            100 * (received - stage["recall"]) for received, stage in zip(before, evaluation.funnel, strict=False)
        ]
        lines = [
            f"<td>{escape(stage['name'])}</td><td>{stage['candidates']:,.0f}</td><td>{stage['recall']:.4f}</td>"
            f'<td class="bar"><span style="width:{max(0.0, loss):.1f}%"></span>{loss:.1f}</td>'
            f"<td>{stage['kept']:.1%}</td><td>{stage['ndcg']:.4f}</td><td>{stage['p50_ms']:.1f}</td>"
            for stage, loss in zip(evaluation.funnel, losses, strict=True)
        ]
        worst = max(range(len(losses)), key=lambda index: losses[index])
        titles = ["stage", "items left", "targets among them", "lost here, of 100 targets"]
        titles += ["share of received targets kept", "NDCG@10", "p50 ms"]
        parts.append(
            f"<h3>{escape(evaluation.model)}</h3>{table(titles, lines, caption='stages')}"
            f"<p>Most is lost at <b>{escape(evaluation.funnel[worst]['name'])}</b>: {losses[worst]:.1f} of 100 "
            "targets. No later stage can bring them back.</p>"
        )
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
            tables.append(f"<h3>{escape(evaluation.model)}</h3>{table(list(PART_TITLES), lines)}")
    if not tables:
        return ""
    return (
        f"<h2>Parts</h2>{''.join(tables)}"
        '<p class="soft">Figures of a part are those of its own lists. A gain is the figure of the blend minus that of '
        "the part, with the 95% interval (paired bootstrap over requests).</p>"
    )


def _calibration(evaluations: Sequence[Evaluation]) -> str:
    """Return for each label the plot of observed shares against predicted probabilities, and its figures."""
    figures = ""
    for label in dict.fromkeys(label for evaluation in evaluations for label in evaluation.calibration):
        bins = {
            index: evaluation.calibration[label]
            for index, evaluation in enumerate(evaluations)
            if evaluation.calibration.get(label)
        }
        if bins:
            plot = plots.calibration_chart(bins, label)
            figures += f'<figure class="card">{plot}<figcaption>{escape(label)}</figcaption></figure>'
    if not figures:
        return ""
    errors = [evaluation.metrics.get("calibration_error", float("nan")) for evaluation in evaluations]
    entropies = [evaluation.metrics.get("normalised_entropy", float("nan")) for evaluation in evaluations]
    lines = [
        f"<td>{legend_name(index, evaluation.model)}</td>{cell(f'{errors[index]:.4f}', value=errors[index])}"
        f"{cell(f'{entropies[index]:.4f}', value=entropies[index])}"
        for index, evaluation in enumerate(evaluations)
        if errors[index] == errors[index]
    ]
    titles = ["model", "calibration error", "normalised entropy"]
    return (
        f'<h2>Calibration</h2>{legend(_models(evaluations))}<div class="grid">{figures}</div>'
        f"{table(titles, lines, caption='calibration', descending=())}"
        '<p class="soft">Ten bins of equally many impressions each; on the dashed line the observed share is the '
        "predicted one; bars are 95% intervals. Calibration error: mean distance from that line. Normalised entropy: "
        "log-loss over that of always predicting the mean; below 1, the probabilities say something. Scores that are "
        "no probabilities are not in this section.</p>"
    )


def _generation(evaluations: Sequence[Evaluation]) -> str:
    """Return the generation quality of the models that generate codes, side by side."""
    reports = [
        (f"<td>{legend_name(index, evaluation.model)}</td>", evaluation.generation)
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
    by_level = table(["model", "search", "beams", *levels], lines, groups=f'<th colspan="3"></th>{groups}')
    num_requests = max(report["requests"] for _, report in reports)
    free_titles = ["model", "no item among the first 10 sequences", "recall@10, those dropped"]
    free_titles += ["recall@10, those repaired", "recall@10 with the constraint"]
    return (
        f"<h2>Generation of codes</h2>{by_level}"
        '<p class="soft">Training predicts a code after the true codes, a search after the codes that it generated '
        "itself: the columns show how far the two differ. The last group is the share of targets whose codes, up to "
        f"this level, are among the beams. Measured on {num_requests:,} requests.</p>"
        f"{table(free_titles, free_lines)}"
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
    legend = "".join(f"<li>{legend_name(models.index(name), name)}</li>" for name in names)
    return (
        f'<h2>Training</h2><ul class="legend">{legend}</ul><div class="grid"><figure class="card">{plot}</figure></div>'
        '<p class="soft">The best epoch is selected on validation requests, never on test requests.</p>'
    )


def _customers(examples: Sequence[CustomerExample], models: Sequence[str]) -> str:
    """Return the history, the held-out items and the lists of each example customer, side by side."""
    parts = []
    for example in examples:
        history = _list_card("history, newest last", [ListedItem(title) for title in example.history])
        held_out = _list_card("held-out items", [ListedItem(title, is_hit=True) for title in example.held_out])
        cards = ""
        for model, items in example.recommended.items():
            name = legend_name(models.index(model), model) if model in models else escape(model)
            num_hits = sum(item.is_hit for item in items)
            cards += _list_card(name, items, count=f"{num_hits} hit{'s' * (num_hits != 1)}" if num_hits else "no hit")
        parts.append(
            f'<h3>{escape(example.name)}</h3><div class="grid">{history}{held_out}</div>'
            f'<div class="lists" tabindex="0" role="region" aria-label="lists of the models">{cards}</div>'
        )
    if not parts:
        return ""
    legend_line = (
        '<p class="soft">Each model answers the same customers. <span class="hit">✓ Marked</span>: held-out items, '
        "which the customer chose next. In small letters: the channel of a cascade that retrieved the item.</p>"
    )
    return f"<h2>Customers</h2>{legend_line}{''.join(parts)}"


def _list_card(head: str, items: Sequence[ListedItem], *, count: str = "") -> str:
    """Return a card with a list of items, of which hits are marked; `head` is HTML, `count` a text beside it."""
    lines = ""
    for item in items:
        title = f'<span class="hit">✓&nbsp;{escape(item.title)}</span>' if item.is_hit else escape(item.title)
        lines += f"<li>{title}{f' <small>{escape(item.channel)}</small>' if item.channel else ''}</li>"
    beside = f' <span class="soft">{count}</span>' if count else ""
    return f'<div class="card"><h4>{head}{beside}</h4><ol>{lines or "<li>nothing</li>"}</ol></div>'


def _codebooks(identifiers: IdentifierTable) -> str:
    """Return plots and table of how often the codes of each level are used."""
    figures, lines = "", []
    for level, size in enumerate(identifiers.codebook_sizes):
        counts = torch.bincount(identifiers.codes[1:, level].long(), minlength=size).double()
        shares = counts[counts > 0] / counts.sum()
        effective = float(torch.exp(-(shares * shares.log()).sum()))
        figures += f'<figure class="card">{plots.codebook_usage(identifiers, level)}</figure>'
        lines.append(
            f"<td>level {level + 1}</td><td>{size:,}</td><td>{len(shares):,}</td><td>{effective:,.1f}</td>"
            f"<td>{int(counts.max()):,}</td>"
        )
    titles = ["level", "codes", "used", "effective codes", "items at the most used code"]
    name = f" ({escape(identifiers.tokenizer)})" if identifiers.tokenizer else ""
    return (
        f'<h2>Codebooks{name}</h2><div class="grid">{figures}</div>{table(titles, lines)}'
        '<p class="soft">Effective codes: the number of codes that, each used equally often, would have the same '
        "entropy. A last level that only separates items of equal codes is used little, as it should be.</p>"
    )


def _tree(identifiers: IdentifierTable, titles: pl.Series | None) -> str:
    """Return the treemap of the semantic IDs with the table of its largest groups."""
    tree = groups(identifiers, titles)
    lines = [
        f'<td><span class="swatch" style="background:hsl({index * 137 % 360} 55% 50%)"></span>{group.code}</td>'
        f'<td>{group.items:,}</td><td>{len(group.cells):,}</td><td class="words">{escape("; ".join(group.titles))}</td>'
        for index, group in enumerate(tree[:LABELLED])
    ]
    return (
        f"<h2>Map of the semantic IDs</h2><figure>{tree_map(tree)}<figcaption>{len(tree):,} first codes in colours, "
        "their second codes as cells; areas are numbers of items.</figcaption></figure>"
        f"{table(['first code', 'items', 'second codes', 'for example'], lines)}"
    )


def _models(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return the names of the models."""
    return [evaluation.model for evaluation in evaluations]
