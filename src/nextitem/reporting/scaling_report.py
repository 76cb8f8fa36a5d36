"""Report of a scaling study: one self-contained HTML page, and the same figures on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nextitem.evaluation.scaling_law import ScalingFit
from nextitem.evaluation.scaling_study import Measurement, ScalingStudy
from nextitem.reporting.elements import cell, table
from nextitem.reporting.report_script import POLICY, SCRIPT
from nextitem.reporting.report_style import STYLE
from nextitem.reporting.scaling_plot import compute_chart, size_chart

SYMBOLS = {"compute": ("A", "a"), "parameters": ("A", "a"), "examples": ("B", "b")}
LETTERS = {"compute": "C", "parameters": "N", "examples": "D"}


@dataclass(frozen=True)
class ScalingRow:
    """One run in the table of the report.

    Attributes:
        measurement: what the study reads of the run.
        settings: the settings that depend on the size, in words.
        embedding_parameters: number of parameters of look-up tables.
        best_epoch: the epoch whose weights are judged.
        epochs: number of epochs that were trained.
        merit: figure of merit.
        seconds: duration.
        is_used: whether the study reads the run; false for a learning rate that another one beats.

    """

    measurement: Measurement
    settings: str
    embedding_parameters: int
    best_epoch: int
    epochs: int
    merit: float
    seconds: float
    is_used: bool


@dataclass(frozen=True, eq=False)
class ScalingPage:
    """What the report of a scaling study is made of.

    Attributes:
        title: title of the page.
        facts: sentences on data, protocol and loss.
        loss_name: name of the loss.
        merit_name: name of the figure of merit.
        rows: all runs.
        study: laws, predictions and verdict.

    """

    title: str
    facts: Sequence[str]
    loss_name: str
    merit_name: str
    rows: Sequence[ScalingRow]
    study: ScalingStudy

    @property
    def measurements(self) -> list[Measurement]:
        """The measurements that the study has read."""
        return [row.measurement for row in self.rows if row.is_used]


def law_texts(study: ScalingStudy) -> dict[str, str]:
    """Return each law as an equation with its numbers: law -> "L(C) = 3.1 + 3.7e+03 C^-0.49"."""
    texts = {}
    for fit, variables in ((study.compute_law, ("compute",)), (study.size_law, study.size_variables)):
        if fit is not None:
            letters = [LETTERS[name] for name in variables]
            terms = [
                f"{coefficient:.4g} {letter}^-{exponent:.3g}"
                for letter, coefficient, exponent in zip(letters, fit.law.coefficients, fit.law.exponents, strict=True)
            ]
            texts[", ".join(variables)] = f"L({', '.join(letters)}) = {' + '.join([f'{fit.law.floor:.4g}', *terms])}"
    return texts


def number_names(variables: Sequence[str]) -> list[str]:
    """Return the names of the numbers of a law of these variables, in the order of `ScalingLaw.numbers`."""
    return ["E", *(SYMBOLS[name][0] for name in variables), *(SYMBOLS[name][1] for name in variables)]


def print_scaling(page: ScalingPage, *, console: Console | None = None) -> None:
    """Print the verdict, the laws, and a line for each configuration."""
    output = console or Console(width=None if Console().is_terminal else 160)
    output.print(page.title, highlight=False)
    lines = Table()
    titles = ("size", "share", "seed", "parameters", "targets", "FLOPs", page.loss_name, page.merit_name)
    for title in titles:
        lines.add_column(title, justify="right")
    for row in page.rows:
        each = row.measurement
        lines.add_row(
            f"{each.size:g}", f"{each.share:g}", str(each.seed), f"{each.parameters:,.0f}", f"{each.examples:,.0f}",
            f"{each.compute:.3g}", f"{each.loss:.4f}", f"{row.merit:.4f}",
        )  # fmt: skip
    output.print(lines)
    for text in law_texts(page.study).values():
        output.print(text, highlight=False)
    for sentence in page.study.sentences:
        output.print(sentence, highlight=False)


def write_scaling_report(path: Path, page: ScalingPage) -> None:
    """Write the report: verdict, plots, laws, predictions, table of runs, method.

    The file loads nothing and contains no address. All text is escaped. The same arguments give the same bytes.
    """
    sections = [_verdict(page), _charts(page), _laws(page.study), _predictions(page.study), _runs(page), _method(page)]
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(page.title)}</title><style>{STYLE}</style></head><body><header><h1>{escape(page.title)}</h1>"
        f"{''.join(f'<p>{escape(fact)}</p>' for fact in page.facts)}</header><main>"
        + "".join(f"<section>{section}</section>" for section in sections if section)
        + f"</main><script>{SCRIPT}</script></body></html>\n"
    )
    path.write_text(html, encoding="utf-8")


def _verdict(page: ScalingPage) -> str:
    first, *others = page.study.sentences
    return (
        f"<h2>Verdict: {escape(page.study.kind)}</h2><p><b>{escape(first)}</b></p>"
        f"{''.join(f'<p>{escape(sentence)}</p>' for sentence in others)}"
    )


def _charts(page: ScalingPage) -> str:
    charts = [chart(page.measurements, page.study, loss_name=page.loss_name) for chart in (compute_chart, size_chart)]
    figures = "".join(f'<figure class="card">{chart}</figure>' for chart in charts)
    return (
        f'<h2>Curves</h2><div class="grid">{figures}</div><p class="soft">Both axes are logarithmic. A point is a run. '
        "Hollow: the largest size, which is not fitted. Dotted: the frontier, the configurations to which no cheaper "
        "one is superior. Bands: 95% bootstrap intervals of the law. The red bar is the prediction of the largest "
        "size, with the scatter of a run.</p>"
    )


def _laws(study: ScalingStudy) -> str:
    """Return the numbers of the laws with their intervals."""
    lines = []
    entries: list[tuple[ScalingFit | None, tuple[str, ...]]] = [
        (study.compute_law, ("compute",)),
        (study.size_law, study.size_variables),
    ]
    texts = law_texts(study)
    for fit, variables in entries:
        if fit is None:
            continue
        intervals = fit.intervals()
        for number, (name, value) in enumerate(zip(number_names(variables), fit.law.numbers(), strict=True)):
            low, high = intervals[number]
            law = escape(texts[", ".join(variables)]) if number == 0 else ""
            lines.append(f"<td>{law}</td><td>{name}</td><td>{value:.4g}</td><td>{low:.4g} .. {high:.4g}</td>")
    if not lines:
        return ""
    return (
        f"<h2>Laws</h2>{table(['law', 'number', 'value', '95% interval'], lines, caption='laws')}"
        '<p class="soft">C: compute in FLOPs. N: parameters outside of embeddings. D: training targets. E: the loss '
        "that more of them does not go below.</p>"
    )


def _predictions(study: ScalingStudy) -> str:
    """Return the measured and predicted losses of the largest size."""
    lines = [
        f"<td>{' and '.join(each.variables)}</td><td>{each.size:g}</td><td>{each.share:g}</td><td>{each.loss:.4f}</td>"
        f"<td>{each.predicted:.4f}</td><td>{each.low:.4f} .. {each.high:.4f}</td><td>{each.error:+.2%}</td>"
        for each in study.held_out
    ]
    if not lines:
        return ""
    titles = ["by the law of", "size", "share", "measured", "predicted", "95% interval", "error"]
    return f"<h2>Largest size, not fitted</h2>{table(titles, lines, caption='predictions')}"


def _runs(page: ScalingPage) -> str:
    """Return the table of all runs."""
    members = set(page.study.frontier)
    lines = []
    for row in page.rows:
        each = row.measurement
        cells = [
            cell(f"{each.size:g}", value=each.size),
            cell(f"{each.share:g}", value=each.share),
            cell(str(each.seed), value=each.seed),
            f"<td>{escape(row.settings)}</td>",
            cell(f"{each.parameters:,.0f}", value=each.parameters),
            cell(f"{row.embedding_parameters:,}", value=row.embedding_parameters),
            cell(f"{each.examples:,.0f}", value=each.examples),
            cell(f"{row.best_epoch} of {row.epochs}", value=row.best_epoch),
            cell(f"{each.compute:.3g}", value=each.compute),
            cell(f"{each.loss:.4f}", value=each.loss),
            cell(f"{row.merit:.4f}", value=row.merit),
            cell(f"{row.seconds:,.0f}", value=row.seconds),
            f"<td>{_role(row, is_member=each.configuration in members)}</td>",
        ]
        lines.append("".join(cells))
    titles = ["size", "share", "seed", "settings", "parameters", "embedding parameters", "targets", "best epoch"]
    titles += ["FLOPs", page.loss_name, page.merit_name, "seconds", ""]
    return f"<h2>Runs</h2>{table(titles, lines, caption='runs', descending=[page.merit_name])}"


def _role(row: ScalingRow, *, is_member: bool) -> str:
    """Return what the study does with a run, in a word; empty for one off the frontier."""
    if not row.is_used:
        return "another learning rate is better"
    return "frontier" if is_member else ""


def _method(page: ScalingPage) -> str:
    return (
        '<h2>Method</h2><p class="soft">A size multiplies the widths of the model, and depths by its square root; the '
        "learning rate falls with its square root. Each run trains on a random share of the users, the same for all "
        "sizes of a seed. The epoch with the lowest loss is judged, and compute counts up to it. FLOPs are counted "
        "from the shapes of all matrix products of the forward and the backward pass, by the real lengths of the "
        "histories; padding, recomputation, look-ups and the optimizer are not counted. Laws minimise the Huber loss "
        "of log L from several starts. Intervals are a bootstrap of the deviations of configurations and of seeds. "
        f"Test requests are not read. Loss: {escape(page.loss_name)}.</p>"
    )
