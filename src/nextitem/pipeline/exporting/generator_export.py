"""Export of generators as a package of ONNX parts, the trie and one Python file, which runs without this one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from nextitem.core.catalog import Catalog
from nextitem.core.errors import UserError
from nextitem.core.tensor_files import save_tensors
from nextitem.core.vector_model import VectorModel
from nextitem.decoding.guidance import GuidedRecommender
from nextitem.models.depth_decoder import DepthDecoder
from nextitem.models.tiger import Tiger
from nextitem.pipeline.exporting import manifest
from nextitem.pipeline.exporting.encoders import ENCODERS
from nextitem.pipeline.exporting.generator_modules import (
    DepthLevel,
    DepthStart,
    TigerDecode,
    TigerStart,
    node_vectors,
)
from nextitem.pipeline.exporting.history_modules import HistoryModule
from nextitem.pipeline.exporting.onnx_files import import_onnx, write_onnx
from nextitem.pipeline.exporting.score_modules import ItemScores
from nextitem.pipeline.folders import prepare_out
from nextitem.pipeline.runs import Run

FORMAT = "nextitem-generator-1"
PROGRAM = Path(__file__).with_name("generate.py")
FILES = {
    "generate.py": "the search; it needs numpy and onnxruntime alone",
    "encode.onnx": "histories to the state of the search",
    "trie.safetensors": "the semantic IDs of all items",
    "items.safetensors": "ids, popularity, and which items come last",
    "items.parquet": "number, id and title of each item",
}


def write_generator(run: Run, out: str | Path, *, overwrite: bool) -> Path:
    """Write generate.py, the ONNX parts, trie.safetensors, items.safetensors and .parquet, manifest.json, README.md.

    Raises UserError if the model is neither a depth decoder nor TIGER, if the extra `export` is not installed, or if
    `out` may not be written.
    """
    model = run.model
    if type(model) not in (DepthDecoder, Tiger):
        raise UserError(
            f"{run.name} cannot be exported as a generator: depth-decoder and tiger can; "
            "use --format onnx or vectors for models that rank by vectors, --format transformers for cobra"
        )
    assert isinstance(model, DepthDecoder | Tiger)
    import_onnx()
    folder = prepare_out(out, overwrite=overwrite)
    if isinstance(model, DepthDecoder):
        entries, files, differences = _write_depth_decoder(model, folder)
    else:
        entries, files, differences = _write_tiger(model, folder)
    guide, reason = _write_guide(model, folder)
    if guide is not None:
        files["guide.onnx"] = "histories to the scores of the guide"
    differences += [reason] if reason else []
    shutil.copyfile(PROGRAM, folder / "generate.py")
    _write_item_arrays(model, folder / "items.safetensors")
    manifest.write_items(folder, model.catalog)
    fixed = {"beam_width": model.config.beam_width, "max_history_length": model.config.max_history_length}
    entries = {"kind": entries.pop("kind"), **fixed, **entries, "guide": guide, "differences": differences}
    manifest.write_manifest(folder, run, FORMAT, {**entries, "files": {**FILES, **files}})
    history = model.catalog.ids.external.head(2).to_list()
    code = (
        "from generate import Generator\n\n"
        "generator = Generator()  # or Generator(folder), from elsewhere\n"
        f"for answer in generator.recommend([{history!r}], k=10):\n"
        '    print(answer["items"], answer["fallback"])\n'
    )
    what = (
        f"`generate.py` searches the semantic IDs of {model.num_items:,} items by the model {run.name}, with numpy and "
        "onnxruntime alone. `python generate.py --history a,b -k 10` prints a list."
    )
    notes = "\n".join(f"* {text}" for text in differences)
    notes = f"How lists differ from those of the run:\n\n{notes}" if notes else ""
    manifest.write_readme(folder, title=f"{run.name} as a generator", what=what, code=code, notes=notes)
    return folder


def _write_depth_decoder(model: DepthDecoder, folder: Path) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Write the parts of a depth decoder; return entries of the manifest, files, and how lists differ."""
    start = DepthStart(model)
    write_onnx(start, start.inputs, ["states"], folder / "encode.onnx")
    files = {"nodes.safetensors": "vectors of the nodes, by which they are scored"}
    for level in range(1, model.trie.num_levels):
        part = DepthLevel(model, level)
        write_onnx(part, part.inputs, ["deeper"], folder / f"level_{level}.onnx")
        files[f"level_{level}.onnx"] = f"states at nodes of depth {level}"
    save_tensors({"vectors": node_vectors(model)}, folder / "nodes.safetensors")
    trie = model.trie if model.config.content_at_leaves else model.tree.seen_trie
    trie.save(folder / "trie.safetensors")
    has_shares = model.shares is not None and len(model.shares.new_items) > 0
    text = "items without a training event come last; in the run, content_shares list them by their content"
    return {"kind": "depth-decoder", "new_items": None}, files, [text] if has_shares else []


def _write_tiger(model: Tiger, folder: Path) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Write the parts of TIGER; return entries of the manifest, files, and how lists differ."""
    start, decode = TigerStart(model), TigerDecode(model)
    write_onnx(start, start.inputs, start.outputs, folder / "encode.onnx")
    write_onnx(decode, decode.inputs, ["logits"], folder / "decode.onnx")
    model.trie.save(folder / "trie.safetensors")
    share, is_reserved = model.config.new_items, model.config.new_items_reserved
    rule = None if share is None else {"share": share, "reserved": is_reserved}
    return {"kind": "tiger", "new_items": rule}, {"decode.onnx": "prefixes of codes to the logits of all codes"}, []


def _write_guide(model: GuidedRecommender, folder: Path) -> tuple[dict[str, Any] | None, str]:
    """Write guide.onnx if the guide can be exported; return its use, or None and why it is left out."""
    if not model.is_guided:
        return None, ""
    assert model.guidance is not None
    scorer, use = model.guidance.scorer, model.guidance.chosen_use
    encoder: HistoryModule | None = ENCODERS[type(scorer)](scorer) if type(scorer) in ENCODERS else None
    if encoder is None or len(encoder.inputs) > 1:
        name = model.guidance.config.model["name"]
        return (
            None,
            f"the guide {name} is left out, as it cannot be exported: these are the lists of the generator alone",
        )
    assert isinstance(scorer, VectorModel)
    write_onnx(ItemScores(scorer, encoder), encoder.inputs, ["scores", "user_vectors"], folder / "guide.onnx")
    return {
        "weight": use.weight,
        "combine": use.combine,
        "transform": use.transform,
        "temperature": use.temperature,
    }, ""


def _write_item_arrays(model: DepthDecoder | Tiger, file: Path) -> None:
    """Write what generate.py needs of the items."""
    is_last = isinstance(model, DepthDecoder) and not model.config.content_at_leaves
    unseen, returnable = model._items_without_events() if is_last else None, model._returnable()
    guide = None if model.guidance is None else model.guidance.scorer.unseen_items()
    tensors = {
        "popularity": model.popularity.float(),
        "unseen": _numbers(unseen),
        "not_returned": _numbers(None if returnable is None else ~returnable),
        "guide_unseen": _numbers(guide),
        **_id_arrays(model.catalog),
    }
    save_tensors({name: value.cpu().contiguous() for name, value in tensors.items()}, file)


def _id_arrays(catalog: Catalog) -> dict[str, Tensor]:
    """Return the ids of the items as whole numbers, or as UTF-8 bytes and where each id ends."""
    ids = catalog.ids.external
    if ids.dtype.is_integer():
        return {"ids": torch.from_numpy(ids.cast(pl.Int64).to_numpy().copy())}
    encoded = [text.encode() for text in ids]
    data = np.frombuffer(b"".join(encoded), np.uint8).copy()
    ends = np.cumsum([len(text) for text in encoded])
    return {"id_bytes": torch.from_numpy(data), "id_ends": torch.from_numpy(ends)}


def _numbers(mask: Tensor | None) -> Tensor:
    """Return the item numbers of a mask [N + 1] without padding, int64; none for None."""
    return torch.zeros(0, dtype=torch.int64) if mask is None else mask[1:].nonzero()[:, 0] + 1
