"""Exported generators: without torch and this package they return the lists of the run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file
from support.exports import answers_of, readme_code, run_blocked
from support.trained_models import rich_run

from nextitem.core.ids import stable_keys
from nextitem.models.depth_decoder import DepthDecoder
from nextitem.models.tiger import Tiger
from nextitem.pipeline.export import differences, export
from nextitem.pipeline.exporting import generator_export
from nextitem.pipeline.exporting.generate import log_sum_exp, read_safetensors, user_key
from nextitem.pipeline.exporting.generator_modules import DepthLevel, DepthStart, TigerDecode, TigerStart, node_vectors
from nextitem.pipeline.recommend import user_requests
from nextitem.pipeline.runs import Run
from nextitem.pipeline.train import train
from nextitem.testing.known_answers import WORDS, partly_unseen

pytest.importorskip("onnxruntime")
NUM_CALLS = 48


def trained(name: str, folder: Path, **settings: Any) -> Run:
    """Return a run on a log in which a seventh of the items has no event; items have their cluster as a column."""
    return train(
        name,
        partly_unseen(with_column=True),
        out=folder,
        recipe=f"debug/{name}",
        protocol="leave-one-out",
        settings={"training": {"max_epochs": 4}, "model": settings},
        progress=False,
    )


def random_calls(run: Run, num_calls: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return calls of `recommend` of an export, and of the run, for the same requests."""
    rng = np.random.default_rng(0)
    ids = run.model.catalog.ids.external.to_list()
    kinds = run.model.catalog.table["kind"].to_list()
    exported, expected = [], []
    for number in range(num_calls):
        history = [ids[place] for place in rng.integers(0, len(ids), rng.integers(1, 8))]
        excluded = [ids[place] for place in rng.integers(0, len(ids), rng.integers(0, 12))]
        k, is_seen_excluded = int(rng.integers(1, 9)), bool(number % 3)
        word = WORDS[number % 5]
        is_filtered = number % 4 == 0
        if number % 10 == 9:
            history = [*history, "no-such-item"]
        exported.append(
            {
                "histories": [history],
                "k": k,
                "exclude": [excluded],
                "allowed": [[item for item, kind in zip(ids, kinds, strict=True) if kind == word]]
                if is_filtered
                else None,
                "exclude_seen": is_seen_excluded,
            }
        )
        expected.append(
            {
                "history": history,
                "k": k,
                "exclude_items": excluded,
                "only": [f"kind={word}"] if is_filtered else [],
                "exclude_seen": is_seen_excluded,
            }
        )
    return exported, expected


def assert_same_lists(folder: Path, run: Run, num_calls: int = NUM_CALLS) -> None:
    """Check that an export answers as the run, one by one and in a batch."""
    calls, expected = random_calls(run, num_calls)
    answers = [answer for (answer,) in answers_of(folder, calls)]
    for answer, call in zip(answers, expected, strict=True):
        ours = run.recommend(**call)
        assert [item["item_id"] for item in answer["items"]] == ours.item_ids
        np.testing.assert_allclose([item["score"] for item in answer["items"]], ours.scores, atol=1e-4, rtol=1e-4)
        assert answer["fallback"] == ours.fallback
    rows = [[call["histories"][0] for call in calls], [call["exclude"][0] for call in calls]]
    limits = [None if call["allowed"] is None else call["allowed"][0] for call in calls]
    together = {"histories": rows[0], "exclude": rows[1], "allowed": limits, "k": 5}
    alone = [{**call, "k": 5, "exclude_seen": True} for call in calls]
    (batched,), singles = answers_of(folder, [together]), answers_of(folder, alone)
    for answer, (single,) in zip(batched, singles, strict=True):
        assert [item["item_id"] for item in answer["items"]] == [item["item_id"] for item in single["items"]]


@pytest.mark.slow
def test_an_exported_tiger_returns_the_lists_of_the_run(tmp_path: Path) -> None:
    run = trained("tiger", tmp_path / "run", user_buckets=4)
    model = run.model
    assert isinstance(model, Tiger)
    folder = export(run, out=tmp_path / "generator", form="generator")
    assert_same_lists(folder, run)
    assert differences(folder) == []
    batch = user_requests(run.dataset, ["u1", "u2", "u3"])  # users have tokens of their own
    ids = model.catalog.ids.external
    histories = [[ids[item - 1] for item in row] for row in batch.items.to_lists()]
    (answers,) = answers_of(folder, [{"histories": histories, "users": ["u1", "u2", "u3"], "k": 5}])
    for answer, user in zip(answers, ["u1", "u2", "u3"], strict=True):
        ours = run.recommend(user=user, k=5, exclude_seen=True)
        assert [item["item_id"] for item in answer["items"]] == ours.item_ids
    # A limited share of new items: the same files with another rule in the manifest.
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for is_reserved in (False, True):
        model.config = model.config.model_copy(update={"new_items": 0.4, "new_items_reserved": is_reserved})
        rule = {"new_items": {"share": 0.4, "reserved": is_reserved}}
        (folder / "manifest.json").write_text(json.dumps({**manifest, **rule}), encoding="utf-8")
        assert_same_lists(folder, run, num_calls=20)


@pytest.mark.slow
def test_an_exported_depth_decoder_returns_the_lists_of_the_run_with_its_guide(tmp_path: Path) -> None:
    guide = {"model": {"name": "sasrec", "width": 16, "layers": 1}, "weight": 0.4, "combine": "mixture"}
    run = trained("depth-decoder", tmp_path / "run", guide=guide)
    model = run.model
    assert isinstance(model, DepthDecoder)
    assert model.is_guided
    folder = export(run, out=tmp_path / "generator", form="generator")
    assert_same_lists(folder, run)
    assert differences(folder) == []
    code = readme_code(folder)
    printed = run_blocked(code, folder)
    assert all(item in printed for item in run.recommend(history=model.catalog.ids.external.head(2).to_list()))
    command = [sys.executable, "generate.py", "--history", "i1,i2", "-k", "4", "--exclude", "i3"]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    ours = run.recommend(history=["i1", "i2"], k=4, exclude_items=["i3"])
    assert [item["item_id"] for item in json.loads(process.stdout)["items"]] == ours.item_ids
    (empty,) = answers_of(folder, [{"histories": [[]], "k": 4}])
    ours = run.recommend(history=[], k=4)
    assert [item["item_id"] for item in empty[0]["items"]] == ours.item_ids
    assert empty[0]["fallback"]


def test_a_guide_that_cannot_be_exported_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []  # of the files that would be written: writing them costs seconds
    monkeypatch.setattr(generator_export, "write_onnx", lambda module, inputs, outputs, file: names.append(file.name))
    run = trained("depth-decoder", tmp_path / "run", guide={"model": "item-graph", "weight": 0.5})
    folder = export(run, out=tmp_path / "generator", form="generator")
    assert "guide.onnx" not in names
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["guide"] is None
    assert set(names) | {"manifest.json", "README.md"} >= set(manifest["files"]) - {
        file.name for file in folder.iterdir()
    }
    (text,) = differences(folder)
    assert "the guide item-graph is left out" in text
    assert text in (folder / "README.md").read_text(encoding="utf-8")


@torch.no_grad()
def test_parts_of_a_depth_decoder_compute_what_its_search_computes() -> None:
    model = rich_run("depth-decoder").model
    assert isinstance(model, DepthDecoder)
    batch = user_requests(rich_run("depth-decoder").dataset, None)
    state = model.start(batch)
    states = DepthStart(model)(batch.items.to_padded())
    torch.testing.assert_close(states, state.beams["hidden"][:, 0], atol=1e-5, rtol=1e-5)
    vectors, codes, nodes = node_vectors(model), None, torch.zeros((len(states), 1), dtype=torch.int64)
    for level in range(model.trie.num_levels):
        children = model.trie.expand(nodes, depth=level).nodes
        logits, state = model.score_children(state, codes, children)
        if level:
            states = DepthLevel(model, level)(states, vectors[nodes[:, 0]])
        product = (vectors[children[:, 0].clamp(min=0)] @ states[:, -1, :, None])[..., 0]
        is_child = (children[:, 0] >= 0) & ~logits[:, 0].isinf()
        torch.testing.assert_close(product[is_child], logits[:, 0][is_child], atol=1e-5, rtol=1e-5)
        best = logits.masked_fill(children < 0, -torch.inf).argmax(2)
        nodes = children.gather(2, best[..., None])[..., 0]
        codes = model.trie.codes[nodes].long()


@torch.no_grad()
def test_parts_of_tiger_compute_what_its_search_computes() -> None:
    model = rich_run("tiger").model
    assert isinstance(model, Tiger)
    batch = user_requests(rich_run("tiger").dataset, None)
    assert batch.user_ids is not None
    start, decode = TigerStart(model), TigerDecode(model)
    encoded = start(batch.items.to_padded(), batch.user_ids)
    state, codes = model.start(batch), None
    rows = torch.arange(batch.num_requests)
    tokens = torch.full((len(rows), 1), model.first_input)
    for level, size in enumerate(model.sizes):
        logits, state = model.step(state, codes)
        first = model.code_offsets[level]
        ours = decode(tokens, rows, *encoded)[:, first : first + size]
        torch.testing.assert_close(ours, logits[:, 0], atol=1e-5, rtol=1e-5)
        codes = logits.argmax(2)
        tokens = torch.cat([tokens, codes + first], dim=1)


def test_users_have_the_keys_of_the_package_and_files_are_read_without_it(tmp_path: Path) -> None:
    ids = ["u1", "17850", "名前", "", "a" * 200]
    assert [user_key(each) for each in ids] == stable_keys(pl.Series(ids)).tolist()
    assert user_key(17850) == user_key("17850")
    assert user_key(None) == 0
    tensors = {"a": torch.arange(6).view(2, 3), "b": torch.rand(4), "none": torch.zeros(0, dtype=torch.int16)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "x"})
    arrays, metadata = read_safetensors(tmp_path / "x.safetensors")
    assert metadata == {"format": "x"}
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(arrays[name], tensor.numpy())
    values = np.array([[0.5, -np.inf], [-np.inf, -np.inf]], np.float32)
    assert log_sum_exp(values).tolist() == [0.5, -np.inf]
