"""The command `nextitem tune`: a search for better settings of a model."""

from __future__ import annotations

from typing import Annotated

import typer

from nextitem.cli.early import check_names, check_out, check_settings, load_data
from nextitem.cli.options import Device, DropUnknown, Out, Overwrite, Protocol, Resume, Set, log

EXAMPLES = (
    "Examples: nextitem tune item-graph --data shop --out runs/tuning --minutes 5 | "
    "nextitem tune sasrec --data DIR --out runs/tuning --trials 50 --space model.width=32,64,128 "
    "--space training.learning_rate=1e-4..1e-2:log | "
    "nextitem train item-graph --data shop --out runs/tuned --recipe runs/tuning/best.toml"
)


def tune(
    model: Annotated[str, typer.Argument(help="Name of a model; see: nextitem models.")],
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            help="Dataset folder, or 'shop' for the simulated shop; may be repeated: settings that suit all.",
        ),
    ],
    out: Out,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.01, help="Duration of the search, in minutes.")
    ] = None,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="Number of settings to try.")] = None,
    space: Annotated[
        list[str] | None,
        typer.Option(
            "--space",
            help="A setting to vary, with its values: model.width=32,64 or training.learning_rate=1e-4..1e-2:log; "
            "without values, those near its default; or a .toml file of such entries. May be repeated. Default: every "
            "setting of the model that has a range near its default.",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="Figure to search by, such as recall@20; default: ndcg@10, of scores auc."),
    ] = None,
    requests: Annotated[
        int,
        typer.Option(
            "--requests",
            min=1,
            help="Validation requests to search on; if there are more, half of them confirm the best settings.",
        ),
    ] = 4000,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="Settings to start from: a .toml file, or the name of a recipe of the package."),
    ] = None,
    ids: Annotated[str | None, typer.Option("--ids", help="Folder of semantic IDs made by: nextitem tokenize.")] = None,
    protocol: Protocol = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of the search, of initial weights, shuffling and sampling.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Number of trials that run at the same time.")] = 1,
    device: Device = "auto",
    settings: Set = None,
    drop_unknown_items: DropUnknown = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Search for better settings of a model on validation requests, never on test requests.

    Writes best.toml (a recipe), trials.jsonl and tuning.png into --out, and prints the best settings.
    """
    from nextitem.pipeline.tuning.arguments import check_arguments

    check_names("model", [model])
    check_settings("model", model, settings or [])
    check_settings("model", model, space or [])
    check_arguments(minutes=minutes, trials=trials, metric=metric, space=space or [])
    check_out(out, resume=resume, overwrite=overwrite)
    datasets = [
        load_data(each, drop_unknown_items=drop_unknown_items, recipe=recipe, overrides=settings or []) for each in data
    ]
    from nextitem.pipeline.tune import tune as run_tuning
    from nextitem.reporting.tuning_report import print_tuning

    tuning = run_tuning(
        model, datasets, out=out, minutes=minutes, trials=trials, space=space or [], metric=metric, requests=requests,
        recipe=recipe, ids=ids, protocol=protocol, seed=seed, jobs=jobs, device=device, overrides=settings or [],
        drop_unknown_items=drop_unknown_items, resume=resume, overwrite=overwrite, log=log,
    )  # fmt: skip
    print_tuning(tuning.title, tuning.changes, tuning.figures, tuning.notes)
    print(
        f"{tuning.recipe}: the best settings, for: nextitem train {model} --data DIR --out RUN --recipe {tuning.recipe}"
    )
