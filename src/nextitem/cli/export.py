"""The command `nextitem export`: models for transformers, ONNX, faiss or numpy; semantic IDs for other projects."""

from __future__ import annotations

from typing import Annotated

import typer

from nextitem.cli.early import check_run
from nextitem.cli.options import Out, Overwrite, log

EXAMPLES = (
    "Examples: nextitem export runs/sasrec --format onnx --out exported | nextitem export runs/tiger --format "
    "generator --out exported | nextitem export ids --format letter --out exported/Beauty "
    "(README.md in the folder shows how to use it)"
)
USES = {
    "transformers": "load it with GPT2LMHeadModel.from_pretrained",
    "onnx": "README.md shows how to score a history with onnxruntime",
    "vectors": "README.md shows how to search the index",
    "generator": "recommend with: python {folder}/generate.py --history ITEM,ITEM",
}


def export(
    source: Annotated[
        str,
        typer.Argument(help="Folder of a run; with --format letter, minionerec or grid: any folder with semantic IDs."),
    ],
    out: Out,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="onnx: scores of sequence and two-tower models; vectors: items for faiss and Parquet; generator: "
            "depth-decoder or tiger with its trie, for numpy and onnxruntime; transformers: cobra, trained with "
            "model.dense=false; letter, minionerec or grid: semantic IDs.",
        ),
    ] = "transformers",
    overwrite: Overwrite = False,
) -> None:
    """Export a model or semantic IDs for other software.

    A model becomes ONNX files, vectors of its items, a generator that runs without this package, or a decoder for
    Hugging Face's transformers. Semantic IDs are written for other projects.
    """
    if form not in USES:
        from nextitem.pipeline.foreign_ids import export_identifiers

        print(export_identifiers(source, form=form, out=out, overwrite=overwrite))
        return
    check_run(source)
    from nextitem.pipeline.export import differences
    from nextitem.pipeline.export import export as run_export

    folder = run_export(source, out=out, form=form, overwrite=overwrite)
    for difference in differences(folder):
        log(f"note: {difference}")
    print(f"{folder}: {USES[form].format(folder=folder)}")
