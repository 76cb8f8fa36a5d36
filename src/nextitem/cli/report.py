"""The command `nextitem report`: what the logs of a server tell about its models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nextitem.cli.early import check_run
from nextitem.cli.options import log, seconds_of, write_json
from nextitem.core.errors import UserError

if TYPE_CHECKING:
    import polars as pl

EXAMPLES = (
    "Examples: nextitem report --live nextitem-impressions | nextitem report --live nextitem-impressions "
    "--events postgresql://me@db/events --out report.html --json report.json"
)


def report(
    live: Annotated[str, typer.Option("--live", help="Folder of the log of lists: nextitem serve --impressions.")],
    events: Annotated[
        str,
        typer.Option("--events", help="Event store (sqlite:///FILE, redis://..., postgresql://...) or dataset folder."),
    ] = "sqlite:///nextitem-events.db",
    namespace: Annotated[str, typer.Option("--namespace", help="Name of the tenant in a shared store.")] = "default",
    attribution: Annotated[
        str,
        typer.Option(
            "--attribution",
            help="Longest time from a list to an event of its user and item that names no list: 90s, 30m, 24h, 7d; 0: "
            "only events that name their list count.",
        ),
    ] = "24h",
    outcome: Annotated[
        list[str] | None,
        typer.Option("--outcome", help="NAME=action,action: what counts as an outcome; may be repeated."),
    ] = None,
    pool_versions: Annotated[
        bool, typer.Option("--pool-versions", help="Count all versions of a model as one.")
    ] = False,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="Estimate from explored lists how a policy would do that was not served: the folder of a run, or a "
            "Parquet file with impression_id, slot, probability.",
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.01, help="Temperature of exploration of the run in --target.")
    ] = 1.0,
    data: Annotated[
        str | None, typer.Option("--data", help="Dataset folder with the histories for --target; default: the run's.")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", help="HTML file to write.")] = None,
    json_file: Annotated[
        str | None, typer.Option("--json", help="JSON file to write the figures to; - prints them instead.")
    ] = None,
) -> None:
    """Report how often lists of each served model were clicked and bought from, and which differences are real."""
    window_ms = 0 if attribution.strip() == "0" else round(1000 * seconds_of(attribution))
    settings = _outcomes(outcome or [])
    if target is not None and not Path(target).is_file():
        check_run(target)
    from nextitem.evaluation.attribution import outcomes_of
    from nextitem.evaluation.live import live_report
    from nextitem.evaluation.off_policy_report import off_policy_report
    from nextitem.reporting.live_report import print_live_report, write_live_report
    from nextitem.serving.impressions import read_impressions
    from nextitem.serving.stored_events import read_events

    lists, answers = read_impressions(live), read_events(events, namespace=namespace)
    figures, attributed = live_report(
        lists, answers, outcomes=outcomes_of(settings), window_ms=window_ms, pools_versions=pool_versions
    )
    if target is not None:
        probabilities = _target(target, data, temperature, lists, answers)
        estimates = off_policy_report(attributed.impressions, probabilities, outcome=figures.outcomes[0])
        figures = replace(figures, off_policy=estimates)
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        write_live_report(Path(out), figures)
        log(f"report: {out}")
    if not write_json(figures.to_json(), json_file):
        print_live_report(figures)


def _target(
    target: str, data: str | None, temperature: float, lists: pl.DataFrame, answers: pl.DataFrame
) -> pl.DataFrame:
    """Return the probabilities of the policy to estimate: those of a file, or of a run."""
    import polars as pl

    if Path(target).is_file():
        try:
            return pl.read_parquet(target)
        except pl.exceptions.PolarsError as error:
            raise UserError(f"--target {target}: {str(error).splitlines()[0]}; write Parquet") from None
    from nextitem.pipeline.runs import load_run
    from nextitem.serving.target_policy import target_probabilities

    run = load_run(target)
    if data is not None:
        run.use_data(data)
    return target_probabilities(run, lists, answers, temperature=temperature)


def _outcomes(texts: list[str]) -> dict[str, list[str]]:
    """Return name -> actions of values such as click=click,view."""
    result = {}
    for text in texts:
        name, _, actions = text.partition("=")
        values = [action.strip() for action in actions.split(",") if action.strip()]
        if not name.strip().isidentifier() or not values:
            raise UserError(f"--outcome {text!r}: write a name and its actions, such as click=click,view")
        result[name.strip()] = values
    return result
