"""The command `nextitem train`: from data to a trained and evaluated run."""

from __future__ import annotations

from typing import Annotated

import typer

from nextitem.cli.early import check_names, check_out, check_settings, load_data
from nextitem.cli.options import Data, Device, DropUnknown, Out, Overwrite, Protocol, Resume, Seed, Set, log

EXAMPLES = (
    "Examples: nextitem train sasrec --data shop --out runs/sasrec | "
    "nextitem train tiger --data DIR --out RUN --recipe amazon14-beauty/tiger-small --minutes 30 | "
    "torchrun --nproc-per-node 2 -m nextitem train sasrec --data DIR --out RUN"
)


def train(
    model: Annotated[str, typer.Argument(help="Name of a model; see: nextitem models.")],
    data: Data,
    out: Out,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", help="A .toml file, or the name of a recipe of the package, such as amazon14-beauty/sasrec."
        ),
    ] = None,
    ids: Annotated[str | None, typer.Option("--ids", help="Folder of semantic IDs made by: nextitem tokenize.")] = None,
    protocol: Protocol = None,
    refit: Annotated[
        bool | None,
        typer.Option(
            "--refit",
            help="Train again on training and validation events, for the best number of epochs.",
            show_default=False,
        ),
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option("--from", help="Folder of a run of the same model, whose weights training starts from."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.01, help="Maximum training time, in minutes.")
    ] = None,
    seed: Seed = None,
    device: Device = "auto",
    settings: Set = None,
    drop_unknown_items: DropUnknown = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a model and evaluate it on the test requests.

    Writes the run (recipe, weights, catalogue, metrics) into --out.
    """
    check_names("model", [model])
    check_settings("model", model, settings or [])
    check_out(out, resume=resume, overwrite=overwrite)
    dataset = load_data(data, drop_unknown_items=drop_unknown_items, recipe=recipe, overrides=settings or [])
    from nextitem.pipeline.train import train as run_training
    from nextitem.reporting.scoreboard import part_line

    run = run_training(
        model, dataset, out=out, recipe=recipe, ids=ids, protocol=protocol, refit=refit, start_from=start_from,
        minutes=minutes, seed=seed, device=device, overrides=settings or [], drop_unknown_items=drop_unknown_items,
        resume=resume, overwrite=overwrite, log=log,
    )  # fmt: skip
    figures = run.metrics["metrics"]
    names = ("recall@10", "ndcg@10", "coverage@10", "auc", "gauc", "log_loss")
    text = ", ".join(f"{name} {figures[name]:.4f}" for name in names if figures.get(name) is not None)
    data_used = "refit" if run.recipe.data.refit else "training events only"
    print(f"{run.folder}: {run.name} ({run.recipe.data.protocol}, {data_used}): {text}")
    for part in run.metrics.get("parts", ()):
        print(part_line(part))
