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

from nextitem.cli.export import export as command
from nextitem.core.errors import UserError
from nextitem.core.vector_model import VectorModel
from nextitem.models.gru4rec import GRU4Rec, GRU4RecConfig
from nextitem.pipeline.export import export
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


def test_the_command_exports_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "vectors"
    command(str(rich_run("matrix-factorisation").folder), str(folder), form="vectors")
    assert capsys.readouterr().out.startswith(f"{folder}: README.md shows how to search the index")
    assert (folder / "index.faiss").is_file()
    with pytest.raises(UserError, match="no such run"):
        command(str(tmp_path / "nowhere"), str(tmp_path / "out"), form="onnx")


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
    torch.nn.init.normal_(model.bias.weight)  # type: ignore[union-attr, arg-type]
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
    """The first layer is the GRU over one-hot items, the second one that of torch."""
    pytest.importorskip("onnxscript")
    run, trained_model = with_two_unseen_items(rich_run("gru4rec"))
    config = GRU4RecConfig(layers=(12, 8), embedding="one-hot", max_history_length=6)
    model = GRU4Rec(config, trained_model.catalog).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    model.set_popularity(trained_model.popularity)
    run.model = model
    folder = export(run, out=tmp_path / "vectors", form="vectors")
    for histories in (HISTORIES, HISTORIES[1:2]):
        batch = requests(histories)
        vectors = open_session(folder / "user.onnx").run(["vectors"], {"items": batch.items.to_padded().numpy()})[0]
        scores, numbers = faiss.read_index(str(folder / "index.faiss")).search(vectors, 5)
        answer = model.recommend(batch, 5)
        assert numbers.tolist() == answer.item_ids.tolist()
        np.testing.assert_allclose(scores, answer.scores.numpy(), atol=1e-5, rtol=1e-5)
    ids = model.catalog.ids.external
    printed = run_blocked(readme_code(folder), folder, allowed="faiss")
    assert printed.strip() == repr(run.recommend(history=ids.head(2).to_list(), k=8).item_ids)
