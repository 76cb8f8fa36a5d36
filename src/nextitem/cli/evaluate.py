"""The command `nextitem evaluate`: metrics of a run on its test requests."""

from __future__ import annotations

from typing import Annotated

import typer

from nextitem.cli.early import check_run
from nextitem.cli.options import Device, log, write_json

EXAMPLES = (
    "Examples: nextitem evaluate runs/sasrec | nextitem evaluate runs/sasrec --json figures.json | "
    "nextitem evaluate runs/tiger --generation 2000"
)


def evaluate(
    run: Annotated[str, typer.Argument(help="Folder of a run.")],
    data: Annotated[
        str | None,
        typer.Option("--data", help="Dataset folder, or 'shop'; default: the data that the run was trained on."),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option("--protocol", help="How to split the data; default: the protocol that the run was trained under."),
    ] = None,
    json_file: Annotated[
        str | None, typer.Option("--json", help="JSON file to write the metrics to; - prints them instead.")
    ] = None,
    allow_other_data: Annotated[
        bool,
        typer.Option("--allow-other-data", help="Accept data or a protocol that the run was not trained for."),
    ] = False,
    device: Device = "auto",
    generation: Annotated[
        int | None,
        typer.Option(
            "--generation",
            min=1,
            help="For models that generate codes: number of test requests on which to measure, too, at which code they "
            "leave the true item, and how often they generate no item.",
        ),
    ] = None,
) -> None:
    """Evaluate a run on its test requests.

    Prints metrics over the full catalogue with confidence intervals, and their values on slices.
    """
    check_run(run)
    from nextitem.pipeline.evaluate import evaluate as run_evaluation
    from nextitem.reporting.scoreboard import print_evaluation

    figures = run_evaluation(
        run,
        data,
        protocol=protocol,
        allow_other_data=allow_other_data,
        progress=json_file != "-",
        generation=generation,
        device=device,
        log=log,
    )
    if not write_json(figures.to_json(), json_file):
        print_evaluation(figures)
