"""Vectors: the index of an export ranks items as the model does, and Parquet contains the same vectors."""

from __future__ import annotations

import json
from pathlib import Path

import faiss
import numpy as np
import polars as pl
import pytest
import torch
from support.exports import readme_code, run_blocked
from support.trained_models import requests, rich_run

from nextitem.core.vector_model import VectorModel
from nextitem.models.gru4rec import GRU4Rec
from nextitem.pipeline.export import export
from nextitem.pipeline.exporting.encoders import encoder_of
from nextitem.pipeline.exporting.onnx_files import open_session
from nextitem.pipeline.exporting.vector_export import indexed_vectors, write_index
from nextitem.pipeline.runs import Run, load_run

HISTORIES = [[1, 2, 3], [7], [12, 1, 2, 3, 4, 5, 6, 7, 8, 9]]


def test_vectors_of_a_model_without_onnx_rank_as_it_does(tmp_path: Path) -> None:
    run = rich_run("matrix-factorisation")
    folder = export(run, out=tmp_path / "vectors", form="vectors")
    model = run.model
    assert isinstance(model, VectorModel)
    index, table = faiss.read_index(str(folder / "index.faiss")), pl.read_parquet(folder / "items.parquet")
    assert table["item_id"].to_list() == model.catalog.ids.external.to_list()
    assert table["number"].to_list() == list(range(1, model.num_items + 1))
    np.testing.assert_array_equal(table["vector"].to_numpy(), model.item_vectors()[1:].numpy())
    batch = requests(HISTORIES)
    scores, numbers = index.search(model.user_vectors(batch).numpy(), 5)
    answer = model.recommend(batch, 5)
    assert numbers.tolist() == answer.item_ids.tolist()
    np.testing.assert_allclose(scores, answer.scores.numpy(), atol=1e-5, rtol=1e-5)
    assert json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["user_model"] is None
    first = run_blocked(readme_code(folder), folder, allowed="faiss")
    assert repr(model.catalog.ids.external[0]) in first


def with_two_unseen_items(run: Run) -> tuple[Run, VectorModel]:
    """Return the run again, with a model in which items 3 and 7 have no training event."""
    loaded = load_run(run.folder)
    counts = loaded.model.popularity.clone()
    counts[[3, 7]] = 0
    loaded.model.set_popularity(counts)
    assert isinstance(loaded.model, VectorModel)
    return loaded, loaded.model


def test_biases_are_part_of_the_vectors_and_unseen_items_are_not_indexed(tmp_path: Path) -> None:
    _, model = with_two_unseen_items(rich_run("gru4rec"))
    torch.nn.init.normal_(model.bias.weight)  # type: ignore[union-attr]
    vectors, is_indexed = indexed_vectors(model)
    assert (~is_indexed).nonzero()[:, 0].tolist() == [0, 3, 7]
    write_index(tmp_path / "index.faiss", vectors, is_indexed)
    queries = torch.nn.functional.pad(model.user_vectors(requests(HISTORIES)), (0, 1), value=1.0)
    index = faiss.read_index(str(tmp_path / "index.faiss"))
    _, numbers = index.search(queries.detach().numpy(), model.num_items - 2)
    answer = model.recommend(requests(HISTORIES), model.num_items)
    assert numbers.tolist() == answer.item_ids[:, :-2].tolist()
    assert sorted(answer.item_ids[0, -2:].tolist()) == [3, 7]


@pytest.mark.slow
def test_the_request_vector_is_exported_with_a_one_for_the_bias(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    run, model = with_two_unseen_items(rich_run("gru4rec"))
    assert isinstance(model, GRU4Rec)
    folder = export(run, out=tmp_path / "vectors", form="vectors")
    items = requests(HISTORIES).items.to_padded().numpy()
    vectors = open_session(folder / "user.onnx").run(["vectors"], {"items": items})[0]
    scores, numbers = faiss.read_index(str(folder / "index.faiss")).search(vectors, 5)
    answer = model.recommend(requests(HISTORIES), 5)
    assert numbers.tolist() == answer.item_ids.tolist()
    np.testing.assert_allclose(scores, answer.scores.numpy(), atol=1e-5, rtol=1e-5)
    _, encoder = encoder_of(model, "gru4rec")
    assert [each.name for each in encoder.inputs] == ["items"]
    ids = model.catalog.ids.external
    printed = run_blocked(readme_code(folder), folder, allowed="faiss")
    assert printed.strip() == repr(run.recommend(history=ids.head(2).to_list(), k=10).item_ids[:8])
