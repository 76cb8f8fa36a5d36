"""The command `nextitem export`: generators for transformers, semantic IDs for other projects."""

from __future__ import annotations

from typing import Annotated

import typer

from nextitem.cli.early import check_run
from nextitem.cli.options import Out, Overwrite

EXAMPLES = (
    "Examples: nextitem export runs/decoder --out exported | nextitem export ids --format letter --out exported/Beauty "
    "(docs/formats.md shows how to read the files)"
)


def export(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of a run of cobra, trained with model.dense=false; with --format letter, minionerec or grid: "
            "any folder with semantic IDs."
        ),
    ],
    out: Out,
    form: Annotated[
        str,
        typer.Option("--format", help="transformers: the generator; letter, minionerec or grid: the semantic IDs."),
    ] = "transformers",
    overwrite: Overwrite = False,
) -> None:
    """Export a generator or semantic IDs for other software.

    A decoder-only generator is exported for Hugging Face's transformers, semantic IDs for other projects.
    """
    if form != "transformers":
        from nextitem.pipeline.foreign_ids import export_identifiers

        print(export_identifiers(source, form=form, out=out, overwrite=overwrite))
        return
    check_run(source)
    from nextitem.pipeline.export import export as run_export

    print(f"{run_export(source, out=out, overwrite=overwrite)}: load it with GPT2LMHeadModel.from_pretrained")
