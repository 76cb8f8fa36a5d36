"""Export of models that rank by vectors to ONNX: a history becomes the scores of all items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.errors import ContractError
from nextitem.core.jagged import Jagged
from nextitem.core.vector_model import VectorModel
from nextitem.models.two_tower import TwoTower
from nextitem.pipeline.exporting import manifest
from nextitem.pipeline.exporting.encoders import encoder_of
from nextitem.pipeline.exporting.feeds import feeds_of
from nextitem.pipeline.exporting.onnx_files import TOLERANCE, import_onnx, largest_difference, write_onnx
from nextitem.pipeline.exporting.score_modules import ItemScores
from nextitem.pipeline.exporting.tower_modules import ItemTowerModule
from nextitem.pipeline.folders import prepare_out
from nextitem.pipeline.runs import Run

FORMAT = "nextitem-onnx-1"
OUTPUTS = {
    "scores": "score of each item number, [batch, items + 1]; the column 0 is -inf. Without history: popularity",
    "user_vectors": "vector of each request, [batch, width]",
}
NUM_CHECKED = 32  # random histories that the written file must score as the model does
LONG, LONGEST = 80, 250  # events of all but the longest of them, and of that one
# Factor of TOLERANCE from which on a file is no copy of the model; below, float32 sums in another order explain it.
MAX_DIFFERENCE = 100


def write_scores(run: Run, out: str | Path, *, overwrite: bool) -> Path:
    """Write model.onnx, item_tower.onnx of a two-tower model, items.parquet, manifest.json and README.md.

    Raises:
        UserError: the model cannot be exported, the extra `export` is not installed, or `out` may not be written.
        ContractError: the written file scores items otherwise than the model.

    """
    model, encoder = encoder_of(run.model, run.name)
    import_onnx()
    folder = prepare_out(out, overwrite=overwrite)
    write_onnx(ItemScores(model, encoder), encoder.inputs, list(OUTPUTS), folder / "model.onnx")
    difference = check_scores(model, folder / "model.onnx", encoder.inputs)
    entries: dict[str, Any] = {
        "files": {"model.onnx": "histories to scores", "items.parquet": "number, id and title of each item"},
        "inputs": [each.to_json() for each in encoder.inputs],
        "outputs": OUTPUTS,
        "largest_difference": {"value": difference * TOLERANCE, "histories": NUM_CHECKED, "relative_to": "1 + |score|"},
    }
    if isinstance(model, TwoTower):
        tower = ItemTowerModule(model)
        write_onnx(tower, tower.inputs, ["item_vectors"], folder / "item_tower.onnx")
        entries["files"]["item_tower.onnx"] = "fields of items to their vectors; new items have item.id 0"
        entries["item_tower"] = [{**each.to_json(), **tower.encodings.get(each.name, {})} for each in tower.inputs]
    manifest.write_items(folder, model.catalog)
    manifest.write_encodings(folder, model.catalog, encoder.inputs)
    manifest.write_manifest(folder, run, FORMAT, entries)
    code = manifest.session_code(model.catalog, encoder.inputs) + (
        'session = onnxruntime.InferenceSession("model.onnx")\n'
        'scores, user_vectors = session.run(["scores", "user_vectors"], feeds)\n'
        "scores[0, seen] = -np.inf  # not what the history contains\n"
        "print([ids[number - 1] for number in np.argsort(-scores[0])[:10]])\n"
    )
    what = f"`model.onnx` is the model {run.name}: it scores {model.num_items:,} items for each history."
    notes = "Batch size and history length may be any. The scores order items as the model does."
    manifest.write_readme(folder, title=f"{run.name} as ONNX", what=what, code=code, inputs=encoder.inputs, notes=notes)
    return folder


def check_scores(model: VectorModel, file: Path, inputs: tuple[Any, ...]) -> float:
    """Return the largest difference of a file's scores from the model's, as a multiple of TOLERANCE.

    It is measured on random histories of all lengths, with and without times. Raises ContractError if it is large.
    """
    batches = [_random_requests(model.num_items, has_times=has_times) for has_times in (True, False)]
    worst = 0.0
    for batch in batches:
        with torch.no_grad():
            scores = model.scores(batch)
        scores[:, 0] = -torch.inf
        worst = max(worst, largest_difference(file, feeds_of(batch, inputs), {"scores": scores}))
    if worst > MAX_DIFFERENCE:
        raise ContractError(f"{file} scores items otherwise than the model: by {worst * TOLERANCE:.2g}")
    return worst


def _random_requests(num_items: int, *, has_times: bool) -> SequenceBatch:
    """Return requests with random histories of 1 .. LONG events, and one of LONGEST."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, LONG + 1, (NUM_CHECKED // 2,), generator=generator)
    lengths[0], lengths[1] = 1, LONGEST
    total = int(lengths.sum())
    items = Jagged.from_lengths(torch.randint(1, num_items + 1, (total,), generator=generator), lengths)
    if not has_times:
        return SequenceBatch(items)
    steps = torch.randint(0, 10**8, (total,), generator=generator).cumsum(0)
    times = items.with_values(1_600_000_000_000 + steps)
    return SequenceBatch(items, timestamps=times, request_times=times.values[items.offsets[1:] - 1] + 10**7)
