"""Export of a run for other software: transformers, ONNX, vectors for an index, or a generator without this package."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from nextitem.core.errors import UserError
from nextitem.pipeline.exporting.generator_export import write_generator
from nextitem.pipeline.exporting.onnx_export import write_scores
from nextitem.pipeline.exporting.transformers_export import write_transformers
from nextitem.pipeline.exporting.vector_export import write_vectors
from nextitem.pipeline.runs import Run, load_run

WRITERS: dict[str, Callable[..., Path]] = {
    "transformers": write_transformers,
    "onnx": write_scores,
    "vectors": write_vectors,
    "generator": write_generator,
}


def export(run: Run | str | Path, *, out: str | Path, form: str = "transformers", overwrite: bool = False) -> Path:
    """Export a run for other software.

    docs/formats.md describes the files of each format, docs/how_to/export.md shows how to use them:

    * transformers: a decoder-only generator (cobra with model.dense = false) for Hugging Face's transformers.
    * onnx: sasrec, gru4rec, hstu, nextitnet, sr-gnn or two-tower as an ONNX file that scores all items.
    * vectors: the item vectors of such a model for faiss and as Parquet, and the request's vector as an ONNX file.
    * generator: depth-decoder or tiger with its trie and a Python file that needs numpy and onnxruntime alone.

    Args:
        run: a run, or its folder.
        out: the folder to write; refused if it is not empty.
        form: transformers, onnx, vectors or generator.
        overwrite: replace an export or a run that is in `out`.

    Returns:
        The folder `out`.

    Raises:
        UserError: the model cannot be exported in this format, `out` may not be written, or a library of the format is
            not installed.

    Examples:
        >>> run = ni.train("sasrec", "shop", out="runs/sasrec")
        >>> ni.export(run, out="exported", form="onnx")

    """
    if form not in WRITERS:
        raise UserError(f"--format {form!r}: choose one of {', '.join(WRITERS)}")
    opened = run if isinstance(run, Run) else load_run(run)
    return WRITERS[form](opened, out, overwrite=overwrite)


def differences(folder: Path) -> list[str]:
    """Return how the lists of an export differ from those of its run, one sentence each; empty if they do not."""
    file = folder / "manifest.json"
    if not file.is_file():
        return []
    return list(json.loads(file.read_text(encoding="utf-8")).get("differences", []))
