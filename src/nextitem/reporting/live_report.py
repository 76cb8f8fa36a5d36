"""Report on served models: a table on the terminal, and one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from math import inf, isfinite
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nextitem.evaluation.attribution import ANY
from nextitem.evaluation.live import LiveReport, PolicyDifference, PolicyFigures
from nextitem.evaluation.off_policy import Estimate
from nextitem.evaluation.off_policy_report import OffPolicyReport
from nextitem.evaluation.rates import Rate, Ratio
from nextitem.reporting import plots
from nextitem.reporting.report_style import STYLE

NOUNS = {"click": "clicks", "purchase": "purchases", "any": "answers"}
WIDTH, ROW, LEFT = 480, 26, 150  # pixels of a plot of intervals
ESTIMATORS = {
    "ips": "no assumption",
    "snips": "no assumption, but a small bias",
    "clipped-ips": "no assumption, but a bias by cut weights",
    "sg-ips": "no assumption, but a bias by shrunk weights",
    "rips": "users see a list from the top",
    "iips": "slots do not influence each other",
    "dm": "the reward model is right",
    "dr": "users see a list from the top; a reward model helps",
    "sndr": "as dr, but a small bias",
    "switch-dr": "as dr; where weights are large, the reward model is right",
    "dros": "as dr, but a bias by shrunk weights",
    "sg-dr": "as dr, but a bias by shrunk weights",
}


def verdicts(report: LiveReport) -> list[str]:
    """Return a sentence for each difference of two models: how large it is, and whether it is more than chance."""
    policies = {policy.name: policy for policy in report.policies}
    return [
        _verdict(entry, policies[entry.first], policies[entry.second])
        for entry in report.differences
        if entry.difference.value == entry.difference.value
    ]


def print_live_report(report: LiveReport, *, console: Console | None = None) -> None:
    """Print the figures of each model, the verdicts, and what to be careful about."""
    console = console or Console(width=None if Console().is_terminal else 160)
    table = Table(box=None)
    outcomes = [f"lists with {_one(name)}" for name in report.outcomes]
    for index, title in enumerate(["model", "lists", "users", *outcomes, "novelty", "coverage", "gini", "fallbacks"]):
        table.add_column(title, justify="right" if index else "left", no_wrap=True)
    for policy in report.policies:
        table.add_row(
            policy.name,
            f"{policy.lists:,}",
            f"{policy.users:,}",
            *(f"{_percent(rate.value)} ({_between(rate)})" for rate in policy.list_rates.values()),
            _figure(policy.novelty),
            f"{policy.coverage:.3f}",
            f"{policy.gini:.3f}",
            _percent(sum(policy.fallbacks.values()) / policy.lists),
        )
    console.print(table)
    for sentence in [*verdicts(report), *report.notes]:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    if report.off_policy is not None:
        _print_off_policy(report.off_policy, console)


def write_live_report(path: Path, report: LiveReport, *, title: str = "Served models") -> None:
    """Write the report as a page without scripts and addresses; all text is escaped.

    Equal reports give equal bytes.
    """
    sections = [
        _head(report, title),
        _summary(report),
        _models(report),
        "".join(_intervals(report, outcome) for outcome in report.outcomes),
        _slots(report),
        _shown_items(report),
        "" if report.off_policy is None else _off_policy(report.off_policy),
        _method(report),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{''.join(sections)}</body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _verdict(entry: PolicyDifference, first: PolicyFigures, second: PolicyFigures) -> str:
    """Return a difference in words, the model with more lists first."""
    noun, difference = f"lists with {_one(entry.outcome)}", entry.difference
    low, high, lift = difference.low, difference.high, difference.lift
    if difference.value < 0:
        first, second, low, high = second, first, -high, -low
        lift = 1 / (1 + lift) - 1 if lift > -1 else inf
    rates = (first.list_rates[entry.outcome].value, second.list_rates[entry.outcome].value)
    figures = f"{first.name} has {100 * rates[0]:.2f} {noun} among 100, {second.name} {100 * rates[1]:.2f}"
    between = f"{100 * low:+.2f} to {100 * high:+.2f} per 100 lists"
    if not isfinite(low):
        return f"{figures}. Too few users to compare them."
    if entry.is_real:
        more = f"{lift:.0%} more" if isfinite(lift) else "more"
        return f"{figures}: {more}, which is more than chance (95% interval {between})."
    if difference.p_value < 0.05:
        return f"{figures}: alone this would be more than chance, but several pairs were compared ({between})."
    return f"{figures}: no more than chance (95% interval {between})."


def _one(outcome: str) -> str:
    """Return an outcome with an article: a click, an order, any answer."""
    return "any answer" if outcome == ANY else f"{'an' if outcome[0] in 'aeiou' else 'a'} {outcome}"


def _head(report: LiveReport, title: str) -> str:
    first = min(policy.first_ms for policy in report.policies)
    last = max(policy.last_ms for policy in report.policies)
    lists = sum(policy.lists for policy in report.policies)
    return (
        f"<h1>{escape(title)}</h1><p>{lists:,} lists that were shown from {_time(first)} to {_time(last)}. "
        f"Events that a list led to: {report.events['by_request']:,} by the request that they name, "
        f"{report.events['by_item']:,} by user, item and time; {report.events['unattributed']:,} others.</p>"
    )


def _summary(report: LiveReport) -> str:
    lines = "".join(f"<li>{escape(sentence)}</li>" for sentence in verdicts(report))
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    result = f"<h2>Which differences are real</h2><ul>{lines}</ul>" if lines else ""
    return result + (f'<h2>Be careful</h2><ul class="soft">{notes}</ul>' if notes else "")


def _models(report: LiveReport) -> str:
    titles = ["model", "version", "lists", "users", "fallbacks", "explored"]
    titles += [f"{unit} with {_one(name)}" for unit in ("lists", "items") for name in report.outcomes]
    lines = []
    for index, policy in enumerate(report.policies):
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in policy.fallbacks.items())
        cells = [
            f"<td>{_marked(index, policy.name)}</td><td>{escape(policy.version[:12])}</td><td>{policy.lists:,}</td>",
            f"<td>{policy.users:,}</td>",
            f"<td>{_percent(sum(policy.fallbacks.values()) / policy.lists)}{_small(reasons)}</td>",
            f"<td>{_percent(policy.explored / policy.lists)}</td>",
            *(f"<td>{_percent(rate.value)}{_small(_between(rate))}</td>" for rate in policy.list_rates.values()),
            *(f"<td>{_percent(rate.value)}{_small(_between(rate))}</td>" for rate in policy.impression_rates.values()),
        ]
        lines.append("".join(cells))
    return (
        f"<h2>Models</h2>{_table(titles, lines)}"
        '<p class="soft">Small figures are 95% intervals, which count users, as lists of one user resemble each other. '
        "Fallbacks are lists that the model did not make; they count for the model that the user was assigned to. "
        "Explored: lists in which chance had a part.</p>"
    )


def _intervals(report: LiveReport, outcome: str) -> str:
    """Return a plot of the rates of all models in one outcome with their intervals."""
    rates = [policy.list_rates[outcome] for policy in report.policies]
    top = max((rate.high for rate in rates), default=0.0) or 1.0
    height = ROW * len(rates) + 34
    scale = (WIDTH - LEFT - 70) / top
    parts = []
    for index, (policy, rate) in enumerate(zip(report.policies, rates, strict=True)):
        y, color = 18 + ROW * index, plots.color(index)
        low, middle, high = (LEFT + scale * value for value in (rate.low, rate.value, rate.high))
        name = policy.name if len(policy.name) <= 19 else policy.name[:18] + "…"
        parts.append(
            f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end" font-size="13" fill="currentColor">'
            f"{escape(name)}</text>"
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke="{color}" stroke-width="3" opacity=".55"/>'
            f'<circle cx="{middle:.1f}" cy="{y}" r="5" fill="{color}"/>'
            f'<text x="{high + 8:.1f}" y="{y + 4}" font-size="12" fill="currentColor">{_percent(rate.value)}</text>'
        )
    axis = height - 18
    parts.append(
        f'<line x1="{LEFT}" x2="{WIDTH - 70}" y1="{axis}" y2="{axis}" stroke="currentColor" opacity=".35"/>'
        f'<text x="{LEFT}" y="{height - 3}" font-size="11" fill="currentColor">0%</text>'
        f'<text x="{WIDTH - 70}" y="{height - 3}" font-size="11" text-anchor="end" fill="currentColor">'
        f"{_percent(top)}</text>"
    )
    label = escape(f"share of the lists with {_one(outcome)} by model")
    return (
        f"<h2>Lists with {escape(_one(outcome))}</h2><figure>"
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}" style="max-width:{WIDTH}px">'
        f"{''.join(parts)}</svg></figure>"
    )


def _slots(report: LiveReport) -> str:
    """Return the rate of the main outcome by slot."""
    slots = sorted({entry.slot for policy in report.policies for entry in policy.slot_rates})
    by_policy = [{entry.slot: entry.rate for entry in policy.slot_rates} for policy in report.policies]
    lines = []
    for slot in slots:
        rates = [rates.get(slot) for rates in by_policy]
        cells = ["-" if rate is None else f"{_percent(rate.value)}{_small(_between(rate))}" for rate in rates]
        lines.append(f"<td>{slot}</td>" + "".join(f"<td>{cell}</td>" for cell in cells))
    titles = ["slot", *(policy.name for policy in report.policies)]
    return (
        f"<h2>By slot</h2>{_table(titles, lines)}"
        f'<p class="soft">Share of the items of a slot with {escape(_one(report.outcomes[0]))}. Later slots have less, '
        "because fewer users look at them, and because their items are less suitable.</p>"
    )


def _shown_items(report: LiveReport) -> str:
    titles = ["model", "novelty (bits)", "distinct items", "coverage", "Gini"]
    lines = [
        f"<td>{_marked(index, policy.name)}</td><td>{_figure(policy.novelty)}</td><td>{policy.distinct_items:,}</td>"
        f"<td>{policy.coverage:.3f}</td><td>{policy.gini:.3f}</td>"
        for index, policy in enumerate(report.policies)
    ]
    return (
        f"<h2>What was shown</h2>{_table(titles, lines)}"
        '<p class="soft">Novelty: the fewer events an item has, the more bits. Coverage: share of all items that any '
        "model showed or that have an event; it grows with the number of lists. Gini: 0 if all these items are shown "
        "equally often, near 1 if few are.</p>"
    )


def _off_policy(report: OffPolicyReport) -> str:
    lines = [
        f"<td>{escape(estimate.estimator)}</td><td>{estimate.reward.value:.4f}{_small(_ratio(estimate.reward))}</td>"
        f"<td>{estimate.gain.value:+.4f}{_small(_ratio(estimate.gain))}</td><td>{estimate.effective_size:,.0f}</td>"
        f"<td>{_weight(estimate.largest_weight)}</td><td>{_weight(estimate.limit)}</td>"
        f'<td class="words">{escape(ESTIMATORS[estimate.estimator])}</td>'
        f'<td class="words">{escape(" ".join(estimate.warnings)) or "-"}</td>'
        for estimate in report.estimates
    ]
    noun = escape(NOUNS.get(report.outcome, report.outcome))
    titles = [
        "estimator",
        f"{noun} per list",
        "gain",
        "lists that count",
        "largest weight",
        "limit",
        "assumes",
        "warning",
    ]
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return (
        f"<h2>A policy that was not served</h2><p>{report.lists:,} explored lists have {report.logged.value:.4f} "
        f"{noun} per list ({_ratio(report.logged)}). {escape(report.advice)}</p>{_table(titles, lines)}"
        + (f'<ul class="soft">{notes}</ul>' if notes else "")
        + '<p class="soft">Lists that count: as many lists of equal weight would be as uncertain. Limit: greater '
        "weights are cut or shrunk, as far as that makes the estimate better; its interval contains the possible "
        "bias.</p>"
    )


def _method(report: LiveReport) -> str:
    return (
        '<details><summary>How this is computed</summary><p class="soft">An event belongs to the list whose request_id '
        "it names, else to the latest list with its item that its user was shown within the attribution time. An item "
        "of a list counts once for each outcome. Intervals are those of a ratio of sums over users; a visitor without "
        "an id counts as one user. A difference is called real if its p-value, adjusted for the number of pairs "
        "(Holm), is below 0.05. Looking again and again until a difference is real finds differences that are none: "
        "decide before when to look.</p></details>"
    )


def _print_off_policy(report: OffPolicyReport, console: Console) -> None:
    noun = NOUNS.get(report.outcome, report.outcome)
    console.print(
        f"\nA policy that was not served ({report.lists:,} explored lists, {report.logged.value:.4f} {noun} per list)"
    )
    table = Table(box=None)
    for index, title in enumerate(
        ["estimator", f"{noun} per list", "gain", "lists that count", "largest weight", "limit"]
    ):
        table.add_column(title, justify="right" if index else "left", no_wrap=True)
    for estimate in report.estimates:
        table.add_row(*_estimate_cells(estimate))
    console.print(table)
    names: dict[str, list[str]] = {}
    for estimate in report.estimates:
        for text in estimate.warnings:
            names.setdefault(text, []).append(estimate.estimator)
    warnings = [f"{', '.join(estimators)}: {text}" for text, estimators in names.items()]
    for sentence in [report.advice, *report.notes, *warnings]:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def _estimate_cells(estimate: Estimate) -> list[str]:
    return [
        estimate.estimator,
        f"{estimate.reward.value:.4f} ({_ratio(estimate.reward)})",
        f"{estimate.gain.value:+.4f} ({_ratio(estimate.gain)})",
        f"{estimate.effective_size:,.0f}",
        _weight(estimate.largest_weight),
        _weight(estimate.limit),
    ]


def _table(titles: Sequence[str], lines: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _marked(index: int, name: str) -> str:
    return f'<span class="mark" style="color:{plots.color(index)}">{plots.text_marker(index)}</span>{escape(name)}'


def _small(text: str) -> str:
    return f'<span class="between">{escape(text)}</span>' if text else ""


def _between(rate: Rate) -> str:
    return f"{_percent(rate.low)} .. {_percent(rate.high)}"


def _ratio(ratio: Ratio) -> str:
    if abs(ratio.low) == inf or ratio.low != ratio.low:
        return "unknown"
    return f"{ratio.low:.4f} .. {ratio.high:.4f}"


def _weight(value: float | None) -> str:
    return "-" if value is None or value == inf else f"{value:,.3g}"


def _percent(value: float) -> str:
    return "-" if value != value else f"{100 * value:.2f}%"


def _figure(value: float) -> str:
    return "-" if value != value else f"{value:.2f}"


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
