"""ONNX: padded modules return what the models return, and onnxruntime computes the same from the written files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.exports import readme_code, run_blocked
from support.trained_models import rich_run

from nextitem.core.batch import SequenceBatch
from nextitem.core.config import parse
from nextitem.core.errors import UserError
from nextitem.core.jagged import Jagged
from nextitem.core.registry import MODELS
from nextitem.core.vector_model import VectorModel
from nextitem.data.examples.event_requests import EventRequests
from nextitem.models.two_tower import TwoTower
from nextitem.nn.fields import kinds
from nextitem.ops.hstu_attention import TIME_BUCKETS, time_buckets
from nextitem.pipeline.export import export
from nextitem.pipeline.exporting.encoders import encoder_of
from nextitem.pipeline.exporting.feeds import feeds_of
from nextitem.pipeline.exporting.history_modules import HistoryModule, HSTUHistory, bucket_borders
from nextitem.pipeline.exporting.onnx_files import Input, largest_difference, open_session, write_onnx
from nextitem.pipeline.exporting.score_modules import ItemScores
from nextitem.pipeline.exporting.tower_modules import ItemTowerModule, UserTowerModule
from nextitem.pipeline.folders import check_out
from nextitem.pipeline.recommend import user_requests
from nextitem.testing.rich_log import NUM_ITEMS, rich_log

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

# Settings that change what an encoder computes; each is checked on histories of all lengths.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "sasrec": ("sasrec", {}),
    "sasrec-pre-norm": ("sasrec", {"block": "pre-norm", "positions": "from-first", "window_step": 2, "heads": 2}),
    "sasrec-features": ("sasrec", {"block": "published", "features": ["category", "cost"], "temperature": 0.2}),
    "nextitnet": ("nextitnet", {"dilations": [1, 2]}),
    "sr-gnn": ("sr-gnn", {"steps": 2}),
    "hstu": ("hstu", {"window_step": 3}),
    "hstu-actions": ("hstu", {"actions": "interleaved", "residual": "normed", "num_actions": 2}),
    "two-tower": ("two-tower", {}),
    "two-tower-few-fields": ("two-tower", {"user_fields": ["history.id", "events.action"], "item_fields": ["item.id"]}),
}


def build(name: str, settings: dict[str, Any], *, longest: int | None = 5, std: float = 0.2) -> VectorModel:
    """Return a model of random weights for the rich log, in which items 3 and 7 have no training event."""
    data = rich_log()
    cls = MODELS[name].load()
    limits = {} if longest is None else {"max_history_length": longest}
    model: VectorModel = cls(parse(cls.Config, {**limits, **settings}, where=name), data.catalog)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std, generator=generator)
    if isinstance(model, TwoTower):
        model._fit_fields(EventRequests(data, max_history_length=5).sample(1000), data.interactions)
    counts = torch.from_numpy(data.interactions.item_counts()).float()
    counts[[3, 7]] = 0
    model.set_popularity(counts)
    return model.eval()


def batches(model: VectorModel) -> list[SequenceBatch]:
    """Return requests with all columns, single ones, and requests without any column but the history."""
    batch = user_requests(rich_log(), None)
    batch = batch.last(torch.minimum(torch.arange(batch.num_requests) % 8 + 1, batch.items.lengths))
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([1, 2, 4, 5, 6, 11, 40])
    values = torch.randint(1, NUM_ITEMS + 1, (int(lengths.sum()),), generator=generator)
    plain = SequenceBatch(Jagged.from_lengths(values, lengths))
    return [batch, batch.select(torch.tensor([3])), plain, plain.select(torch.tensor([0]))]


def expected_scores(model: VectorModel, batch: SequenceBatch) -> torch.Tensor:
    scores = model.scores(batch)
    scores[:, 0] = -torch.inf
    return scores


def with_empty_row(batch: SequenceBatch) -> SequenceBatch:
    return SequenceBatch(Jagged.from_rows([[], *batch.items.to_lists()]))


@pytest.mark.parametrize("case", SETTINGS)
@torch.inference_mode()
def test_padded_modules_score_as_the_models_do(case: str) -> None:
    name, settings = SETTINGS[case]
    model, encoder = encoder_of(build(name, settings), name)
    scores = ItemScores(model, encoder).eval()
    for batch in batches(model):
        feeds = feeds_of(batch, encoder.inputs)
        actual, vectors = scores(*feeds.values())
        torch.testing.assert_close(actual, expected_scores(model, batch), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(vectors, model.user_vectors(batch), atol=1e-5, rtol=1e-5)
        wider = {  # more padding changes nothing
            each.name: torch.nn.functional.pad(feeds[each.name], (0, 3)) if "length" in each.shape else feeds[each.name]
            for each in encoder.inputs
        }
        torch.testing.assert_close(scores(*wider.values())[0], actual, atol=1e-5, rtol=1e-5)


def test_an_empty_history_gets_the_popularity() -> None:
    model, encoder = encoder_of(build("sasrec", {}), "sasrec")
    batch = with_empty_row(SequenceBatch(Jagged.from_rows([[1, 2]])))
    scores, vectors = ItemScores(model, encoder)(*feeds_of(batch, encoder.inputs).values())
    assert torch.equal(scores[0, 1:], model.popularity[1:])
    assert not vectors[0].any()
    answer = model.recommend(batch, 3)
    assert torch.equal(scores.topk(3).indices[1], answer.item_ids[1])


def test_borders_of_buckets_are_exact() -> None:
    borders = bucket_borders(time_buckets, TIME_BUCKETS)
    inner = borders[1:-1][borders[1:-1] < 10**13]
    around = torch.cat([inner - 1, inner, inner + 1, torch.tensor([-5, 0, 10**15])])
    assert torch.equal((around[:, None] >= borders[1:-1]).sum(1).int(), time_buckets(around))
    module = HSTUHistory(build("hstu", {}))  # type: ignore[arg-type]
    assert torch.equal(module._buckets(around).int(), time_buckets(around))
    tower = UserTowerModule(build("two-tower", {}))  # type: ignore[arg-type]
    hours = torch.arange(0, 10**8, 1_234_567)
    assert torch.equal(1 + (hours[:, None] >= tower.ages[1:]).sum(1), kinds.logarithmic(hours / kinds.HOUR_MS + 1))


class SideBySide(torch.nn.Module):
    """Several encoders in one file, as writing a file costs seconds: `forward` returns the scores of each model."""

    def __init__(self, parts: list[tuple[VectorModel, HistoryModule]]) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(ItemScores(model, encoder) for model, encoder in parts)
        widest = max((encoder for _, encoder in parts), key=lambda encoder: len(encoder.inputs))
        self.inputs, self.counts = widest.inputs, [len(encoder.inputs) for _, encoder in parts]

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(part(*values[:count])[0] for part, count in zip(self.parts, self.counts, strict=True))


@pytest.mark.slow
def test_onnxruntime_computes_the_scores_of_the_models(tmp_path: Path) -> None:
    settings: dict[str, dict[str, Any]] = {
        "sasrec": {},
        "nextitnet": {},
        "sr-gnn": {},
        "hstu": {"actions": "interleaved"},
    }
    parts = [encoder_of(build(name, values, std=0.1), name) for name, values in settings.items()]
    module, names, file = SideBySide(parts), list(settings), tmp_path / "models.onnx"
    write_onnx(module, module.inputs, names, file)
    for batch in batches(parts[0][0]):
        with torch.inference_mode():
            expected = {name: expected_scores(model, batch) for name, (model, _) in zip(names, parts, strict=True)}
        assert largest_difference(file, feeds_of(batch, module.inputs), expected) <= 1
    feeds = {each.name: np.zeros((1, 2) if "length" in each.shape else 1, np.int64) for each in module.inputs}
    for (model, _), scores in zip(parts, open_session(file).run(names, feeds), strict=True):
        np.testing.assert_array_equal(scores[0, 1:], model.popularity[1:].numpy())


@pytest.mark.slow
def test_a_run_with_both_towers_is_exported_and_its_readme_works_without_the_package(tmp_path: Path) -> None:
    run = rich_run("two-tower")
    model = run.model
    assert isinstance(model, TwoTower)
    folder = export(run, out=tmp_path / "onnx", form="onnx")
    ids = model.catalog.ids.external
    printed = run_blocked(readme_code(folder), folder)
    assert printed.strip() == repr(run.recommend(history=ids.head(2).to_list(), k=10).item_ids)
    assert (folder / "requests.json").is_file()
    assert (folder / "events.json").is_file()
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["format"] == "nextitem-onnx-1"
    assert manifest["largest_difference"]["value"] < 1e-4
    assert open_session(folder / "model.onnx").get_inputs()[0].shape == ["batch", "length"]
    with pytest.raises(UserError, match="--overwrite"):
        export(run, out=folder, form="onnx")
    assert check_out(folder, overwrite=True) == folder  # an export may be replaced
    _, encoder = encoder_of(model, "two-tower")
    for batch in batches(model):
        with torch.inference_mode():
            expected = {"scores": expected_scores(model, batch)}
        assert largest_difference(folder / "model.onnx", feeds_of(batch, encoder.inputs), expected) <= 1
    tower, items = ItemTowerModule(model), torch.arange(1, NUM_ITEMS + 1)
    feeds = {each.name: value for each, value in zip(tower.inputs, tower.codes_of(model, items), strict=True)}
    expected = {"item_vectors": model.item_vectors()[1:]}
    assert largest_difference(folder / "item_tower.onnx", feeds, expected) <= 1
    entries = {each["name"]: each for each in manifest["item_tower"]}
    values, numbers = entries["item.category"]["values"], entries["item.cost"]["borders"]
    categories, costs = (model.catalog.table[name].to_list() for name in ("category", "cost"))
    assert [values.index(value) + 1 for value in categories] == feeds["item.category"].tolist()
    assert [1 + sum(border <= cost for border in numbers) for cost in costs] == feeds["item.cost"].tolist()


def test_models_that_cannot_be_exported_raise_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = rich_run("popularity")
    for form, words in (
        ("onnx", "sasrec, gru4rec"),
        ("vectors", "two vectors"),
        ("generator", "depth-decoder and tiger"),
    ):
        with pytest.raises(UserError, match=words):
            export(run, out=tmp_path / "out", form=form)
    with pytest.raises(UserError, match="choose one of transformers, onnx, vectors, generator"):
        export(run, out=tmp_path / "out", form="tflite")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"nextitem\[export\]"):
        export(rich_run("sasrec"), out=tmp_path / "out", form="onnx")
    assert not (tmp_path / "out").exists()


def test_samples_of_inputs_have_their_types_and_sizes() -> None:
    generator = torch.Generator().manual_seed(0)
    items = Input("items", "int64", ("batch", "length"), "", high=4).sample(generator)
    assert items.dtype == torch.int64
    assert set(items.unique().tolist()) <= {1, 2, 3}
    assert Input("x", "float64", ("rows", 9), "").sample(generator).shape == (5, 9)
