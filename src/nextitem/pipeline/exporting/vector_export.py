"""Export of item vectors to faiss and Parquet, with the request's vector as ONNX: scores are inner products."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import polars as pl
import torch
from torch import Tensor

from nextitem.core.errors import UserError
from nextitem.core.vector_model import VectorModel
from nextitem.pipeline.exporting import manifest
from nextitem.pipeline.exporting.encoders import ENCODERS, EXPORTABLE
from nextitem.pipeline.exporting.onnx_files import import_onnx, write_onnx
from nextitem.pipeline.exporting.score_modules import IndexedVectors
from nextitem.pipeline.folders import prepare_out
from nextitem.pipeline.runs import Run

FORMAT = "nextitem-vectors-1"


def write_vectors(run: Run, out: str | Path, *, overwrite: bool) -> Path:
    """Write index.faiss, items.parquet, manifest.json, README.md and, if the encoder can be exported, user.onnx.

    Raises UserError if the model does not rank by vectors, if the extra `export` is needed and not installed, or if
    `out` may not be written.
    """
    model = run.model
    if not isinstance(model, VectorModel):
        raise UserError(
            f"{run.name} does not rank items by the inner product of two vectors; export vectors of sasrec, gru4rec, "
            "hstu, nextitnet, sr-gnn, two-tower or matrix-factorisation"
        )
    encoder = ENCODERS[type(model)](model) if type(model) in ENCODERS else None
    if encoder is not None:
        import_onnx()
    folder = prepare_out(out, overwrite=overwrite)
    vectors, is_indexed = indexed_vectors(model)
    write_index(folder / "index.faiss", vectors, is_indexed)
    arrays = vectors[1:].numpy()
    columns = [
        pl.Series("is_indexed", is_indexed[1:].numpy()),
        pl.Series("vector", arrays, dtype=pl.Array(pl.Float32, arrays.shape[1])),
    ]
    manifest.write_items(folder, model.catalog, *columns)
    entries: dict[str, Any] = {
        "files": {
            "index.faiss": "flat index of inner products, with item numbers as its ids",
            "items.parquet": "number, id, title and vector of each item, and whether the index contains it",
        },
        "width": vectors.shape[1],
        "num_indexed": int(is_indexed.sum()),
        "user_model": None,
    }
    if encoder is None:
        entries["reason"] = f"the requests of {run.name} cannot be encoded by ONNX; those of {EXPORTABLE} can"
    else:
        has_biases = model.item_biases() is not None
        write_onnx(IndexedVectors(encoder, has_biases=has_biases), encoder.inputs, ["vectors"], folder / "user.onnx")
        entries["files"]["user.onnx"] = "histories to the vectors with which the index is searched"
        entries |= {"user_model": "user.onnx", "inputs": [each.to_json() for each in encoder.inputs]}
        manifest.write_encodings(folder, model.catalog, encoder.inputs)
    manifest.write_manifest(folder, run, FORMAT, entries)
    _write_readme(folder, run, model, () if encoder is None else encoder.inputs, entries)
    return folder


def indexed_vectors(model: VectorModel) -> tuple[Tensor, Tensor]:
    """Return the vectors of all items [N + 1, D], which end in the bias if there is one, and which are indexed [N + 1].

    Items that the model ranks after all others are not indexed.
    """
    vectors, biases, unseen = model.item_vectors().detach().float(), model.item_biases(), model.unseen_items()
    if biases is not None:
        vectors = torch.cat([vectors, biases.detach()[:, None]], dim=1)
    is_indexed = torch.ones(len(vectors), dtype=torch.bool) if unseen is None else ~unseen.cpu()
    is_indexed[0] = False
    return vectors.cpu().contiguous(), is_indexed


def write_index(file: Path, vectors: Tensor, is_indexed: Tensor) -> None:
    """Write a flat faiss index of inner products over these rows of `vectors [N + 1, D]`; ids are the row numbers."""
    numbers = is_indexed.nonzero()[:, 0]
    index = faiss.IndexIDMap(faiss.IndexFlatIP(vectors.shape[1]))
    index.add_with_ids(np.ascontiguousarray(vectors[numbers].numpy()), numbers.numpy())
    faiss.write_index(index, str(file))


def _write_readme(folder: Path, run: Run, model: VectorModel, inputs: tuple[Any, ...], entries: dict[str, Any]) -> None:
    what = (
        f"`index.faiss` contains the vectors of {entries['num_indexed']:,} of {model.num_items:,} items of the model "
        f"{run.name}: a score is an inner product. `items.parquet` contains all vectors, in order of the item number."
    )
    if not inputs:
        code = (
            "import faiss\nimport numpy as np\nimport pyarrow.parquet as pq\n\n"
            'table = pq.read_table("items.parquet")\n'
            'ids, vectors = table["item_id"].to_pylist(), np.array(table["vector"].to_pylist(), np.float32)\n'
            'scores, numbers = faiss.read_index("index.faiss").search(vectors[:1], 10)\n'
            "print([ids[number - 1] for number in numbers[0] if number > 0])\n"
        )
        manifest.write_readme(
            folder, title=f"Vectors of {run.name}", what=what, code=code, notes=entries["reason"] + "."
        )
        return
    code = (
        "import faiss\n"
        + manifest.session_code(model.catalog, inputs)
        + (
            'queries = onnxruntime.InferenceSession("user.onnx").run(["vectors"], feeds)[0]\n'
            'scores, numbers_found = faiss.read_index("index.faiss").search(queries, 10 + len(seen))\n'
            "print([ids[number - 1] for number in numbers_found[0] if number > 0 and number not in seen][:10])\n"
        )
    )
    notes = "Items without a training event are not in the index if the model ranks them after all others."
    manifest.write_readme(folder, title=f"Vectors of {run.name}", what=what, code=code, inputs=inputs, notes=notes)
