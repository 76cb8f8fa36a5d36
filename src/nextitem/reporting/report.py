"""The report: the scoreboard and what is behind it, as one HTML page that needs nothing but itself."""

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
    Column,
    Mark,
    ReportRow,
    best_marks,
    column_marks,
    noise_marks,
    slice_size,
)
from nextitem.reporting.tree_map import LABELLED, groups, tree_map

CURVES = ("recall", "ndcg", "set_recall", "coverage", "novelty", "diversity")
SLICE_METRICS = ("recall@10", "ndcg@10")
COLD = "recall@10"


@dataclass(frozen=True)
class CustomerExample:
    """One customer as titles: what they had (oldest first), what they took next, what each model offered."""

    name: str
    history: list[str]
    held_out: list[str]
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
    """Writes the report: scoreboard, curves over k, slices, stages, spelling, training, customers, codebooks, map.

    `item_titles` names items 1..N in the tree; `epoch_logs` maps a row's name to its epochs, each with "epoch" and,
    if one was judged, "validation"; `notes` are printed under the title. A section without data is left out. The file
    holds no script and no address; all text is escaped. The same arguments give the same bytes.
    """
    evaluations = [row.evaluation for row in rows]
    sections = [
        _head(title, evaluations, notes),
        _scoreboard(rows),
        _curves(evaluations),
        _slices(evaluations),
        _funnels(evaluations),
        _spelling(evaluations),
        _training(epoch_logs, [one.model for one in evaluations]),
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
    facts = ""
    if evaluations:
        first = evaluations[0]
        learnt = "training and validation events" if first.refit else "training events only"
        ranked = "ranks the full catalogue; hits are counted on items."
        if first.protocol == "impressions":
            ranked = "scores what was shown, whatever its slot."
        facts = (
            f"<p>{first.requests:,} test requests, protocol {escape(first.protocol)}, learnt from {learnt}. Every "
            f"model {ranked}</p>"
        )
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<h1>{escape(title)}</h1>{facts}" + (f'<ul class="soft">{listed}</ul>' if listed else "")


def _scoreboard(rows: Sequence[ReportRow]) -> str:
    if not rows:
        return ""
    used = [column for column in COLUMNS if any(column.metric in row.evaluation.metrics for row in rows)]
    colds = [row.evaluation.slices.get("cold", {}) for row in rows]
    cold_requests = max((int(cold.get("requests", 0)) for cold in colds), default=0)
    cold = [cold.get(COLD) for cold in colds]
    titles = ["model", *(column.title for column in used)]
    titles += [f"cold {COLD} (of {cold_requests:,})", "parameters", "train s", "p50 ms", "p99 ms"]
    columns = [_figures(rows, column) for column in used]
    columns.append(_table_cells(["-" if value is None else f"{value:.4f}" for value in cold], best_marks(cold)))
    for digits, cost in (
        (0, [float(row.parameters) for row in rows]),
        (1, [row.train_seconds for row in rows]),
        (2, [row.p50_ms for row in rows]),
        (2, [row.p99_ms for row in rows]),
    ):
        columns.append([f"<td>{value:,.{digits}f}</td>" for value in cost])
    names = [_legend_name(index, row.evaluation.model) for index, row in enumerate(rows)]
    lines = [f"<td>{name}</td>" + "".join(column[place] for column in columns) for place, name in enumerate(names)]
    return (
        f"<h2>Scoreboard</h2>{_table(titles, lines)}"
        '<p class="soft"><span class="best">★</span> best of its column. <b>≈</b> within noise of the best: the 95% '
        "interval of the difference, request by request (paired bootstrap), holds zero, so these requests cannot tell "
        f"the two apart. Small figures are 95% intervals. p50 and p99 are for one request alone.</p>{_verdict(rows)}"
    )


def _figures(rows: Sequence[ReportRow], column: Column) -> list[str]:
    """The cells of one metric, with intervals and marks."""
    cells, marks = [], column_marks(rows, column)
    for row, mark in zip(rows, marks, strict=True):
        value = row.evaluation.metrics.get(column.metric)
        text = "-" if value is None or value != value else f"{value:.{column.digits}f}"
        low, high = row.evaluation.intervals.get(column.metric, (float("nan"), float("nan")))
        between = ""
        if low == low and column.higher_is_better:
            between = f'<span class="between">{low:.{column.digits}f} .. {high:.{column.digits}f}</span>'
        cells.append(text + ("&nbsp;≈" if mark == "noise" else "") + between)
    return _table_cells(cells, marks)


def _table_cells(cells: Sequence[str], marks: Sequence[Mark]) -> list[str]:
    """Table cells; the best ones are marked."""
    return [
        f'<td class="best">★&nbsp;{text}</td>' if mark == "best" else f"<td>{text}</td>"
        for text, mark in zip(cells, marks, strict=True)
    ]


def _verdict(rows: Sequence[ReportRow]) -> str:
    """In words: who leads by the first metric, and who cannot be told from the leader."""
    metric = COLUMNS[0].metric
    known = [place for place, row in enumerate(rows) if row.evaluation.metrics.get(metric, float("nan")) >= 0]
    if len(known) < 2:
        return ""
    top = max(rows[place].evaluation.metrics[metric] for place in known)
    leaders = [place for place in known if rows[place].evaluation.metrics[metric] == top]
    close = [place for place, noise in noise_marks(rows, metric).items() if noise and place not in leaders]
    leader = f"{_named(rows, leaders)} {'leads' if len(leaders) == 1 else 'lead'} by {metric}"
    if close:
        them = "it" if len(leaders) == 1 else "them"
        return f"<p>{leader}; {_named(rows, close)} cannot be told from {them} on these requests.</p>"
    return f"<p>{leader}, beyond noise.</p>" if len(leaders) == 1 else f"<p>{leader}.</p>"


def _named(rows: Sequence[ReportRow], places: Sequence[int]) -> str:
    return ", ".join(f"<b>{escape(rows[place].evaluation.model)}</b>" for place in places)


def _curves(evaluations: Sequence[Evaluation]) -> str:
    drawn = [plot for name in CURVES if (plot := plots.metric_curve(evaluations, name)) is not None]
    if not drawn:
        return ""
    figures = "".join(f'<figure class="card">{plot}</figure>' for plot in drawn)
    return (
        f'<h2>Metrics over k</h2>{_legend(evaluations)}<div class="grid">{figures}</div>'
        '<p class="soft">Bands are 95% bootstrap intervals over requests.</p>'
    )


def _slices(evaluations: Sequence[Evaluation]) -> str:
    drawn = [plot for metric in SLICE_METRICS if (plot := plots.slices_chart(evaluations, metric)) is not None]
    if not drawn:
        return ""
    figures = "".join(f'<figure class="card">{plot}</figure>' for plot in drawn)
    names = plots.slice_order(evaluations)
    lines = []
    for name in names:
        parts = [one.slices.get(name, {}) for one in evaluations]
        count = next(int(slice_size(part)) for part in parts if part)
        cells = [part.get(SLICE_METRICS[0]) for part in parts]
        figures_of = [None if cell is None or cell != cell else cell for cell in cells]
        shown = ["-" if cell is None else f"{cell:.4f}" for cell in figures_of]
        label = escape(name.replace("_", " "))
        lines.append(f"<td>{label}</td><td>{count:,}</td>" + "".join(_table_cells(shown, best_marks(figures_of))))
    titles = ["slice", "requests", *(one.model for one in evaluations)]
    return (
        f'<h2>Where each model is good</h2>{_legend(evaluations)}<div class="grid">{figures}</div>'
        '<p class="soft">Memorization: the step from the last item to the target occurs in training; generalization: '
        "it does not. Cold: the target does not occur in training. Popular, middle, rare: targets that share the "
        "first 20%, the next 60% and the last 20% of the training events. History: its length. In brackets: "
        f"requests.</p><details><summary>{SLICE_METRICS[0]} in figures</summary>{_table(titles, lines)}</details>"
    )


def _funnels(evaluations: Sequence[Evaluation]) -> str:
    """What each stage of a cascade keeps, and what it throws away too early."""
    parts = []
    for one in evaluations:
        if one.funnel is None:
            continue
        lines = [
            f"<td>{escape(stage['name'])}</td><td>{stage['candidates']:,.0f}</td><td>{stage['recall']:.4f}</td>"
            f"<td>{stage['kept']:.1%}</td><td>{stage['ndcg']:.4f}</td><td>{stage['p50_ms']:.1f}</td>"
            for stage in one.funnel
        ]
        titles = ["stage", "items left", "targets among them", "kept of what came in", "NDCG@10", "p50 ms"]
        parts.append(f"<h3>{escape(one.model)}</h3>{_table(titles, lines)}")
    if not parts:
        return ""
    return (
        f"<h2>Stages</h2>{''.join(parts)}"
        '<p class="soft">The first stage receives every target. Times are medians of a request alone.</p>'
    )


def _spelling(evaluations: Sequence[Evaluation]) -> str:
    """Where a model that spells items leaves the true codes, and how often it would spell no item."""
    parts = []
    for one in evaluations:
        if one.generation is None:
            continue
        titles = ["level", "right after the true codes", "right after its own", "true codes among the beams"]
        lines = [
            f"<td>{number}</td>" + "".join(f"<td>{level[name]:.1%}</td>" for name in LEVEL_FIGURES)
            for number, level in enumerate(one.generation["levels"], start=1)
        ]
        found = one.generation
        parts.append(
            f"<h3>{escape(one.model)}</h3>{_table(titles, lines)}<p>{found['beam_width']} beams, {found['requests']:,} "
            f"requests. Without the constraint {found['invalid@10']:.1%} of the first 10 sequences are no item: "
            f"recall@10 {found['free_recall@10']:.4f} where those are dropped, {found['repaired_recall@10']:.4f} where "
            f"they are put right by their longest prefix, {found['recall@10']:.4f} with it, by codes alone.</p>"
        )
    if not parts:
        return ""
    return (
        f"<h2>Spelling</h2>{''.join(parts)}"
        '<p class="soft">Training predicts a code after the true ones, a search after its own: the columns say how '
        "far the two part.</p>"
    )


def _training(histories: Mapping[str, list[dict[str, float]]], models: Sequence[str]) -> str:
    plot = plots.training_curve(histories, models)
    if plot is None:
        return ""
    names = [name for name in histories if name in models]
    legend = "".join(f"<li>{_legend_name(models.index(name), name)}</li>" for name in names)
    return (
        f'<h2>Training</h2><ul class="legend">{legend}</ul><div class="grid"><figure class="card">{plot}</figure></div>'
        '<p class="soft">The epoch that counts is chosen on validation requests, never on test requests.</p>'
    )


def _customers(examples: Sequence[CustomerExample]) -> str:
    parts = []
    for example in examples:
        wanted = set(example.held_out)
        cards = _titles("had, newest last", example.history) + _titles("took next", example.held_out, marked=wanted)
        for model, titles in example.recommended.items():
            cards += _titles(model, titles, marked=wanted)
        parts.append(f'<h3>{escape(example.name)}</h3><div class="grid narrow">{cards}</div>')
    if not parts:
        return ""
    words = '<p class="soft">What they took next is <span class="hit">marked</span>.</p>'
    return f"<h2>Customers</h2>{words}{''.join(parts)}"


def _titles(head: str, titles: Sequence[str], *, marked: set[str] | frozenset[str] = frozenset()) -> str:
    lines = "".join(
        f'<li><span class="hit">{escape(title)}</span></li>' if title in marked else f"<li>{escape(title)}</li>"
        for title in titles
    )
    return f'<div class="card"><h3>{escape(head)}</h3><ol>{lines or "<li>nothing</li>"}</ol></div>'


def _codebooks(table: IdentifierTable) -> str:
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
    titles = ["level", "codes", "used", "as if evenly used", "items at the most used"]
    name = f" ({escape(table.tokenizer)})" if table.tokenizer else ""
    return (
        f'<h2>Codebooks{name}</h2><div class="grid">{figures}</div>{_table(titles, lines)}'
        '<p class="soft">As if evenly used: the number of codes that, each used equally often, would have the same '
        "entropy. A last level that tells items with equal codes apart is used little, and should be.</p>"
    )


def _tree(table: IdentifierTable, titles: pl.Series | None) -> str:
    tree = groups(table, titles)
    lines = [
        f'<td><span class="swatch" style="background:hsl({place * 137 % 360} 55% 50%)"></span>{group.code}</td>'
        f'<td>{group.items:,}</td><td>{len(group.cells):,}</td><td class="words">{escape("; ".join(group.titles))}</td>'
        for place, group in enumerate(tree[:LABELLED])
    ]
    return (
        f"<h2>Map of the semantic IDs</h2><figure>{tree_map(tree)}<figcaption>{len(tree):,} first codes in colours, "
        "their second codes as cells; areas are numbers of items.</figcaption></figure>"
        f"{_table(['first code', 'items', 'second codes', 'for example'], lines)}"
    )


def _legend(evaluations: Sequence[Evaluation]) -> str:
    names = "".join(f"<li>{_legend_name(place, one.model)}</li>" for place, one in enumerate(evaluations))
    return f'<ul class="legend">{names}</ul>'


def _legend_name(place: int, name: str) -> str:
    return f'<span class="mark" style="color:{plots.color(place)}">{plots.sign(place)}</span>{escape(name)}'


def _table(titles: Sequence[str], lines: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'
