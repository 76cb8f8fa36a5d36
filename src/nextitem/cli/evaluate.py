"""nextitem evaluate"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nextitem.cli.early import check_run
from nextitem.cli.options import Device, Protocol, say

EXAMPLES = (
    "Examples: nextitem evaluate runs/sasrec | nextitem evaluate runs/sasrec --json figures.json | "
    "nextitem evaluate runs/tiger --generation 2000"
)


def evaluate(
    run: Annotated[str, typer.Argument(help="A run's folder.")],
    data: Annotated[
        str | None,
        typer.Option("--data", help="Dataset folder; default: the one that the run was trained on."),
    ] = None,
    protocol: Protocol = None,
    json_file: Annotated[
        str | None, typer.Option("--json", help="Write the figures to this file; - prints them.")
    ] = None,
    allow_other_data: Annotated[
        bool,
        typer.Option("--allow-other-data", help="Evaluate on data or a protocol that the run was not trained for."),
    ] = False,
    device: Device = "auto",
    generation: Annotated[
        int | None,
        typer.Option(
            "--generation",
            min=1,
            help="Also show, on so many requests, where a generator leaves the true codes, or generates no item.",
        ),
    ] = None,
) -> None:
    """Evaluates a run on its test requests: full catalogue, item-level hits, confidence intervals, slices."""
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
        log=say,
    )
    text = json.dumps(figures.to_json(), indent=2)
    if json_file == "-":
        print(text)
        return
    if json_file is not None:
        Path(json_file).parent.mkdir(parents=True, exist_ok=True)
        Path(json_file).write_text(text + "\n", encoding="utf-8")
    print_evaluation(figures)
