"""The command `nextitem compare`: many models on one scoreboard."""

from __future__ import annotations

from typing import Annotated

import typer

from nextitem.cli.early import check_names, check_out, check_run, load_data
from nextitem.cli.options import Data, Device, DropUnknown, Out, Overwrite, Protocol, Resume, Seed, log

EXAMPLES = (
    "Examples: nextitem compare --models popularity,item-graph,sasrec --data DIR --out report | "
    "nextitem compare runs/sasrec runs/tiger --data DIR --out report"
)


def compare(
    data: Data,
    out: Out,
    runs: Annotated[list[str] | None, typer.Argument(help="Folders of finished runs on these data.")] = None,
    models: Annotated[
        str | None, typer.Option("--models", help="Models to train with their default recipes, separated by commas.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting of a model, for example --set sasrec.training.max_epochs=5."),
    ] = None,
    protocol: Protocol = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes-per-model", min=0.01, help="Maximum training time of each model, in minutes."),
    ] = None,
    seed: Seed = None,
    device: Device = "auto",
    price: Annotated[
        float,
        typer.Option(
            "--price-per-core-hour",
            min=0.0,
            help="Price of one processor core for an hour, in any currency; the report prices requests by it.",
        ),
    ] = 0.04,
    drop_unknown_items: DropUnknown = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Compare runs and new models on the same test requests.

    A guided generator has two rows, with and without its guide. Prints a scoreboard, and writes report.html and
    scoreboard.json.
    """
    names = [name.strip() for name in (models or "").split(",") if name.strip()]
    check_names("model", names)
    check_out(out, resume=resume, overwrite=overwrite)
    for run in runs or []:
        check_run(run)
    dataset = load_data(data, drop_unknown_items=drop_unknown_items)
    from nextitem.core.config import apply_overrides
    from nextitem.pipeline.compare import compare as run_comparison
    from nextitem.reporting.scoreboard import print_scoreboard

    comparison = run_comparison(
        dataset,
        out=out,
        runs=runs or [],
        models=names,
        settings=apply_overrides({}, settings or []),
        protocol=protocol,
        minutes_per_model=minutes,
        seed=seed,
        drop_unknown_items=drop_unknown_items,
        resume=resume,
        overwrite=overwrite,
        device=device,
        price_per_core_hour=price,
        log=log,
    )
    print_scoreboard(comparison.rows)
    print(f"report: {out}/report.html")
