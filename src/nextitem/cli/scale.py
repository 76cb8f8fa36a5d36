"""The command `nextitem scale`: a scaling law of one family of models."""

from __future__ import annotations

from typing import Annotated

import typer

from nextitem.cli.early import check_names, check_out, check_settings, load_data
from nextitem.cli.options import Data, Device, DropUnknown, Out, Overwrite, Protocol, Resume, Set, log

EXAMPLES = (
    "Examples: nextitem scale sasrec --data shop --out runs/scaling --minutes 20 | "
    "nextitem scale hstu --data DIR --out runs/scaling --sizes 1/8,1/4,1/2,1,2 --data-shares 1/2,1 --seeds 0,1 | "
    "nextitem scale hstu --data DIR --out runs/scaling --seeds 0,1,2 --resume"
)


def scale(
    family: Annotated[str, typer.Argument(help="Name of a model whose operations are counted, such as sasrec.")],
    data: Data,
    out: Out,
    sizes: Annotated[
        str | None,
        typer.Option(
            "--sizes",
            help="Factors of the widths of the recipe, such as 1/4,1/2,1,2; depths grow with the square root. The "
            "largest is predicted, not fitted. Default: 1/8,1/4,1/2,1,2,4.",
        ),
    ] = None,
    data_shares: Annotated[
        str | None,
        typer.Option("--data-shares", help="Shares of the training users. Default: 1/4,1/2,1."),
    ] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="Seeds, such as 0,1,2. Default: 0.")] = None,
    learning_rates: Annotated[
        str | None,
        typer.Option(
            "--learning-rates",
            help="Factors of the learning rate, such as 1/2,1,2; of each size and share the best one counts. "
            "Default: 1.",
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.01, help="Duration of the study, in minutes.")
    ] = None,
    points: Annotated[int | None, typer.Option("--points", min=1, help="Maximum number of points to train.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="Settings of size 1: a .toml file, or the name of a recipe of the package."),
    ] = None,
    ids: Annotated[str | None, typer.Option("--ids", help="Folder of semantic IDs made by: nextitem tokenize.")] = None,
    protocol: Protocol = None,
    device: Device = "auto",
    settings: Set = None,
    drop_unknown_items: DropUnknown = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train sizes of a model on shares of the data, and fit laws of the validation loss over compute and size.

    Writes report.html, results.json and scaling.png into --out, and prints the verdict. Test requests are not read.
    """
    from nextitem.pipeline.scaling import arguments
    from nextitem.pipeline.scaling.families import family_of

    check_names("model", [family])
    family_of(family)
    check_settings("model", family, settings or [])
    factors = arguments.SIZES if sizes is None else arguments.numbers_of("--sizes", sizes)
    shares = arguments.DATA_SHARES if data_shares is None else arguments.numbers_of("--data-shares", data_shares)
    rates = arguments.LEARNING_RATES
    if learning_rates is not None:
        rates = arguments.numbers_of("--learning-rates", learning_rates)
    seed_values = arguments.SEEDS if seeds is None else arguments.seeds_of(seeds)
    arguments.check_arguments(
        sizes=factors, data_shares=shares, seeds=seed_values, learning_rates=rates, minutes=minutes, points=points
    )
    check_out(out, resume=resume, overwrite=overwrite)
    dataset = load_data(data, drop_unknown_items=drop_unknown_items, recipe=recipe, overrides=settings or [])
    from nextitem.pipeline.scale import scale as run_study
    from nextitem.reporting.scaling_report import print_scaling

    scaling = run_study(
        family, dataset, out=out, sizes=factors, data_shares=shares, seeds=seed_values, learning_rates=rates,
        minutes=minutes, points=points, recipe=recipe, ids=ids, protocol=protocol, device=device,
        overrides=settings or [], drop_unknown_items=drop_unknown_items, resume=resume, overwrite=overwrite, log=log,
    )  # fmt: skip
    print_scaling(scaling.page())
    print(f"{scaling.folder / 'report.html'}: plots, laws and runs")
