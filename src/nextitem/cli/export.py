"""nextitem export"""

from __future__ import annotations

from typing import Annotated

import typer

from nextitem.cli.early import check_run
from nextitem.cli.options import Out, Overwrite

EXAMPLES = "Examples: nextitem export runs/decoder --out exported (docs/formats.md says how to read it)"


def export(
    run: Annotated[str, typer.Argument(help="A run's folder: cobra, trained with model.dense=false.")],
    out: Out,
    overwrite: Overwrite = False,
) -> None:
    """Writes a decoder-only generator as a folder that Hugging Face's transformers can load."""
    check_run(run)
    from nextitem.pipeline.export import export as run_export

    print(f"{run_export(run, out=out, overwrite=overwrite)}: load it with GPT2LMHeadModel.from_pretrained")
