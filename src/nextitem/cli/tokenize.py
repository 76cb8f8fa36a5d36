"""The command `nextitem tokenize`: semantic IDs for the items of a data set."""

from __future__ import annotations

from typing import Annotated

import typer

from nextitem.cli.early import check_names, check_out, check_settings, load_data
from nextitem.cli.options import Data, DropUnknown, Overwrite, Resume, Seed, Set, log

EXAMPLES = (
    "Examples: nextitem tokenize residual-kmeans --data shop --out ids | "
    "nextitem tokenize residual-kmeans --data DIR --out ids --append"
)


def tokenize(
    name: Annotated[str, typer.Argument(help="Name of a tokenizer; see: nextitem models --kind tokenizer.")],
    data: Data,
    out: Annotated[
        str, typer.Option("--out", help="Folder of semantic IDs to write; refused if it is not empty, unless --append.")
    ],
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            help="Protocol whose training events the IDs may learn from, if they do (clusters, content.collaborative); "
            "default: that of the recipe or of the data.",
        ),
    ] = None,
    append: Annotated[
        bool,
        typer.Option("--append", help="Add codes for new items to the IDs in --out; existing codes do not change."),
    ] = False,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="A .toml file, or the name of a recipe of the package.")
    ] = None,
    seed: Seed = None,
    settings: Set = None,
    drop_unknown_items: DropUnknown = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Create semantic IDs for items, and print their quality."""
    check_names("tokenizer", [name])
    check_settings("tokenizer", name, settings or [])
    if not append:
        check_out(out, resume=resume, overwrite=overwrite)
    dataset = load_data(data, drop_unknown_items=drop_unknown_items, recipe=recipe, overrides=settings or [])
    from nextitem.pipeline.tokenize import tokenize as run_tokenizer
    from nextitem.reporting.scoreboard import print_quality

    table = run_tokenizer(
        name, dataset, out=out, recipe=recipe, protocol=protocol, seed=seed, append=append, overrides=settings or [],
        drop_unknown_items=drop_unknown_items, resume=resume, overwrite=overwrite, log=log,
    )  # fmt: skip
    if not append:
        print_quality(table)
    sizes = f"{table.num_levels} levels {table.codebook_sizes}"
    print(f"{out}: {table.num_items:,} items, {sizes}, version {table.version}")
