"""Comparisons of every pair of models by one figure: size of a difference, and whether it is more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import combinations

from torch import Tensor

from nextitem.evaluation.intervals import Difference, paired_difference, paired_p_value
from nextitem.evaluation.rates import holm
from nextitem.reporting import plots
from nextitem.reporting.elements import legend_name, table
from nextitem.reporting.scoreboard import ReportRow

REAL_BELOW = 0.05  # adjusted p-value below which a difference is called real


@dataclass(frozen=True, eq=False)
class Comparisons:
    """Differences of all pairs of models by one metric.

    Attributes:
        metric: the metric, a mean over requests.
        order: rows of the scoreboard that have the metric, best first.
        values: row -> its value for each request.
        p_values: (row a, row b) -> p-value of the pair, adjusted for the number of pairs (Holm); for both orders.

    """

    metric: str
    order: list[int]
    values: dict[int, Tensor]
    p_values: dict[tuple[int, int], float]

    def difference(self, a: int, b: int) -> Difference:
        """Return the metric of row a minus that of row b, with its own 95% interval."""
        return paired_difference(self.values[a], self.values[b])

    def is_real(self, a: int, b: int) -> bool:
        """Whether the difference of two rows is more than chance."""
        return self.p_values[a, b] < REAL_BELOW

    @property
    def num_pairs(self) -> int:
        """Number of pairs."""
        return len(self.p_values) // 2

    def tiers(self) -> list[list[int]]:
        """Return the rows in groups, best first: the first row of a group does not really differ from the others."""
        groups: list[list[int]] = []
        for row in self.order:
            if groups and not self.is_real(groups[-1][0], row):
                groups[-1].append(row)
            else:
                groups.append([row])
        return groups


def compare_pairs(rows: Sequence[ReportRow], metric: str) -> Comparisons | None:
    """Compare every pair of rows by a metric, request by request; None if fewer than two rows can be paired."""
    values = {index: row.evaluation.values[metric] for index, row in enumerate(rows) if metric in row.evaluation.values}
    values = {index: value for index, value in values.items() if rows[index].evaluation.metrics[metric] >= 0}  # no NaN
    if len(values) < 2 or len({len(value) for value in values.values()}) > 1:
        return None
    order = sorted(values, key=lambda index: -rows[index].evaluation.metrics[metric])
    pairs = list(combinations(order, 2))
    adjusted = holm([paired_p_value(values[a], values[b]) for a, b in pairs])
    p_values = dict(zip(pairs, adjusted, strict=True))
    return Comparisons(metric, order, values, p_values | {(b, a): p_value for (a, b), p_value in p_values.items()})


def pairs_table(rows: Sequence[ReportRow], comparisons: Comparisons) -> str:
    """Return the folded table of all pairs: how many more of 100 the model of the row finds than that of the column."""
    lines = []
    for a in comparisons.order:
        cells = [f"<td>{legend_name(a, rows[a].name)}</td>"]
        for b in comparisons.order:
            if a == b:
                cells.append("<td></td>")
                continue
            difference = comparisons.difference(a, b)
            text = f"{100 * difference.mean:+.1f}"
            figure = f"<b>{text}</b>" if comparisons.is_real(a, b) else f"{text}&nbsp;≈"
            low, high = 100 * difference.low, 100 * difference.high
            cells.append(f'<td>{figure}<span class="between">{low:+.1f} .. {high:+.1f}</span></td>')
        lines.append("".join(cells))
    heads = "".join(
        f'<th scope="col"><span class="mark" style="color:{plots.color(b)}">{plots.text_marker(b)}</span>'
        f"{escape(rows[b].name)}</th>"
        for b in comparisons.order
    )
    return (
        "<details><summary>Every pair of models</summary>"
        + table([], lines, groups=f'<th scope="col">of 100, more than</th>{heads}', caption="every pair of models")
        + f'<p class="soft">{escape(comparisons.metric)}, times 100: the row minus the column. <b>Bold</b>: more than '
        f"chance (sign-flip test over requests, adjusted for {comparisons.num_pairs} pairs by Holm, 5%). ≈: could be "
        "chance. Small figures are 95% intervals of one difference, not adjusted.</p></details>"
    )
