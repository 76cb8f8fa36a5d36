"""Table and page of a simulation: long-term measures of several policies with the same customers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nextitem.reporting import plots
from nextitem.reporting.elements import bullets, cell, legend, table
from nextitem.reporting.report_script import POLICY, SCRIPT
from nextitem.reporting.report_style import STYLE

SMALLER_IS_BETTER = ("regret", "regret_share")
NO_MERIT = ("diversity",)  # more is not better by itself
PRINTED = ("sessions", "return_rate", "satisfaction", "clicks_per_list", "diversity", "retention", "regret")


@dataclass(frozen=True)
class SimulatedPolicy:
    """Figures of one policy.

    Attributes:
        name: name of the policy.
        measures: mean of each measure over the customers, with its 95% interval: value, low, high.
        differences: what the policy has more than the first one, customer by customer: value, low, high.
        visits: number of visits.
        bound_gap: largest share by which lists can be better than those that regret is measured against.
        active: share of customers who are active at the begin of each day: they come back later.
        seconds: duration of the simulation.

    """

    name: str
    measures: dict[str, dict[str, float]]
    differences: dict[str, dict[str, float]]
    visits: int
    bound_gap: float
    active: list[float]
    seconds: float


def print_simulation(policies: Sequence[SimulatedPolicy], *, console: Console | None = None) -> None:
    """Print a line for each policy, and whether it differs from the first one: + or - beside a real difference."""
    output = console or Console(width=None if Console().is_terminal else 160)
    lines = Table()
    lines.add_column("policy")
    for name in PRINTED:
        lines.add_column(name.replace("_", " "), justify="right")
    for policy in policies:
        lines.add_row(policy.name, *(f"{_value(policy, name)}{_mark(policy, name)}" for name in PRINTED))
    output.print(lines)
    if len(policies) > 1:
        output.print(f"+ and -: more or less than {policies[0].name}, beyond the 95% interval", highlight=False)


def write_simulation_report(
    path: Path, policies: Sequence[SimulatedPolicy], measures: Mapping[str, str], *, facts: Sequence[str] = ()
) -> None:
    """Write the page of a simulation: measures with intervals, differences from the first policy, and who stays.

    The file loads nothing and contains no address. All text is escaped. The same arguments give the same bytes.

    Args:
        path: the file to write.
        policies: figures of the policies.
        measures: what each measure means, by name.
        facts: sentences about the simulation.

    """
    title = "Simulated customers"
    sections = [
        f"<h2>Measures</h2>{_measures(policies, measures)}",
        f"<h2>Differences from {escape(policies[0].name)}</h2>{_differences(policies, measures)}" * (len(policies) > 1),
        f"<h2>Who stays</h2>{_curve(policies)}",
        "<h2>What the measures mean</h2>" + bullets([f"{name}: {text}." for name, text in measures.items()]),
    ]
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><header><h1>{title}</h1>"
        f"{''.join(f'<p>{escape(fact)}</p>' for fact in facts)}</header><main>"
        + "".join(f"<section>{section}</section>" for section in sections if section)
        + f"</main><script>{SCRIPT}</script></body></html>\n"
    )
    path.write_text(html, encoding="utf-8")


def _value(policy: SimulatedPolicy, name: str) -> str:
    value = policy.measures[name]["value"]
    return "-" if value != value else f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def _mark(policy: SimulatedPolicy, name: str) -> str:
    """Return + or - if the policy really differs from the first one, otherwise a space."""
    difference = policy.differences.get(name)
    if difference is None or not difference["low"] * difference["high"] > 0:
        return " "
    return "+" if difference["value"] > 0 else "-"


def _measures(policies: Sequence[SimulatedPolicy], measures: Mapping[str, str]) -> str:
    """Return the table of the measures with their intervals; the best of each is marked."""
    best = {}
    for name in measures:
        values = [policy.measures[name]["value"] for policy in policies]
        if name not in NO_MERIT:
            best[name] = (min if name in SMALLER_IS_BETTER else max)(values)
    lines = []
    for policy in policies:
        cells = [f'<th scope="row">{escape(policy.name)}</th>']
        for name in measures:
            figure = policy.measures[name]
            text = f"{_value(policy, name)} <small>{figure['low']:.3g} .. {figure['high']:.3g}</small>"
            cells.append(cell(text, value=figure["value"], is_best=figure["value"] == best.get(name)))
        lines.append("".join(cells))
    titles = [name.replace("_", " ") for name in measures]
    return table(["policy", *titles], lines, caption="measures", descending=titles)


def _differences(policies: Sequence[SimulatedPolicy], measures: Mapping[str, str]) -> str:
    """Return the table of the paired differences; what is within the interval of 0 is marked as noise."""
    lines = []
    for policy in policies[1:]:
        cells = [f'<th scope="row">{escape(policy.name)}</th>']
        for name in measures:
            figure = policy.differences[name]
            noise = "" if figure["low"] * figure["high"] > 0 else " (noise)"
            text = f"{figure['value']:+.3g} <small>{figure['low']:+.3g} .. {figure['high']:+.3g}{noise}</small>"
            cells.append(cell(text, value=figure["value"]))
        lines.append("".join(cells))
    titles = [name.replace("_", " ") for name in measures]
    return table(["policy", *titles], lines, caption="differences", descending=titles)


def _curve(policies: Sequence[SimulatedPolicy]) -> str:
    """Return the share of customers who are active, day by day."""
    curve = plots.daily_shares({policy.name: policy.active for policy in policies})
    return f'{legend([policy.name for policy in policies])}<figure class="card">{curve}</figure>'
