"""Semantic IDs that learn from events: which events they see, what is recorded, and where they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

import nextitem as ni
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.data.protocols import make_split
from nextitem.data.readers import dataset_from_frames
from nextitem.pipeline.bundle import load_recipe
from nextitem.pipeline.recipe import Recipe
from nextitem.pipeline.tokenize import learns_from_events, make_tokenizer, with_content
from nextitem.testing.known_answers import planted_clusters

SIZES = {"tokenizer.codebook_sizes": [8, 12]}


def untitled(items: int = 20, users: int = 60) -> Dataset:
    """Return a data set whose items have ids only."""
    ids = [f"i{number:02d}" for number in range(items)]
    log = pl.DataFrame(
        {
            "user_id": [f"u{n // 6:03d}" for n in range(6 * users)],
            "item_id": [ids[(n // 6 % 2) * 10 + n * (1 + n // 12 % 3) * 7 % 10] for n in range(6 * users)],
            "timestamp": [1_770_000_000 + 60 * n for n in range(6 * users)],
        }
    )
    return dataset_from_frames({"interactions": log, "items": pl.DataFrame({"item_id": ids})})


def test_only_training_events_of_the_protocol_are_read(tmp_path: Path) -> None:
    data = planted_clusters()
    table = ni.tokenize("clusters", data, out=tmp_path / "ids", settings=SIZES, protocol="leave-one-out")
    recipe = load_recipe(tmp_path / "ids")
    assert recipe.data.protocol == "leave-one-out"
    assert recipe.data.fingerprint == data.fingerprint
    train = make_split(data, "leave-one-out").train
    for events, is_same in ((train, True), (data, False)):
        tokenizer = make_tokenizer(with_content(events, recipe), recipe, out=None)
        assert torch.equal(tokenizer.encode_catalog(events.catalog).int(), table.codes[1:]) is is_same


def test_they_are_refused_where_they_may_have_seen_test_targets(tmp_path: Path) -> None:
    data = planted_clusters()
    ni.tokenize("clusters", data, out=tmp_path / "ids", settings=SIZES, protocol="time")
    arguments: dict[str, Any] = {
        "ids": tmp_path / "ids",
        "recipe": "debug/tiger",
        "settings": {"training.max_epochs": 1},
    }
    with pytest.raises(UserError, match=r"--ids .*: it was trained under protocol time, whose training events may"):
        ni.train("tiger", data, out=tmp_path / "refused", protocol="leave-one-out", **arguments)
    run = ni.train("tiger", data, out=tmp_path / "run", protocol="time", **arguments)
    assert run.model.identifiers is not None
    assert run.model.identifiers.tokenizer == "clusters"


def test_clusters_of_content_alone_need_no_split(tmp_path: Path) -> None:
    data = planted_clusters()
    content_alone = {**SIZES, "tokenizer.transition_weight": 0}
    ni.tokenize("clusters", data, out=tmp_path / "ids", settings=content_alone, protocol="time")
    ni.train(
        "tiger",
        data,
        out=tmp_path / "run",
        ids=tmp_path / "ids",
        recipe="debug/tiger",
        protocol="leave-one-out",
        settings={"training.max_epochs": 1},
    )
    one_event = data.interactions.select(torch.arange(1).numpy())
    small = Dataset("one event", one_event, data.catalog, data.users)
    assert ni.tokenize("clusters", small, out=tmp_path / "small", settings=content_alone).is_unique
    with pytest.raises(UserError, match="no border between them"):
        ni.tokenize("clusters", small, out=tmp_path / "with-events", settings=SIZES)


def test_a_run_that_makes_its_own_learns_from_its_own_training_events(tmp_path: Path) -> None:
    data = planted_clusters()
    settings = {"tokenizer.name": "clusters", **SIZES, "training.max_epochs": 1}
    run = ni.train(
        "tiger", data, out=tmp_path / "run", recipe="debug/tiger", protocol="leave-one-out", settings=settings
    )
    recipe = load_recipe(tmp_path / "run")
    train = with_content(make_split(data, "leave-one-out").train, recipe)
    tokenizer = make_tokenizer(train, recipe, out=None)
    assert run.model.identifiers is not None
    assert torch.equal(run.model.identifiers.codes[1:], tokenizer.encode_catalog(train.catalog).int())


def test_items_without_content_can_be_tokenized_and_appended(tmp_path: Path) -> None:
    data = untitled()
    lines: list[str] = []
    settings = {"tokenizer.codebook_sizes": [2, 12]}
    table = ni.tokenize(
        "clusters", data, out=tmp_path / "ids", settings=settings, protocol="leave-one-out", log=lines.append
    )
    assert "note: the items have no content, so the semantic IDs depend on events alone" in lines
    assert len(torch.unique(table.codes[1:11, 0])) == len(torch.unique(table.codes[11:, 0])) == 1
    with pytest.raises(UserError, match="neither text nor features"):
        ni.tokenize("residual-kmeans", data, out=tmp_path / "content")
    with pytest.raises(UserError, match="neither text nor features"):
        ni.tokenize("clusters", data, out=tmp_path / "alone", settings={"tokenizer.transition_weight": 0})
    longer = ni.tokenize("clusters", untitled(items=23), out=tmp_path / "ids", append=True)
    assert torch.equal(longer.codes[:21], table.codes)
    assert longer.codes[21:].tolist() == [[0, 10], [1, 10], [0, 11]]
    run = ni.train(
        "tiger",
        data,
        out=tmp_path / "run",
        ids=tmp_path / "ids",
        recipe="debug/tiger",
        protocol="leave-one-out",
        settings={"training.max_epochs": 1},
    )
    assert run.model.identifiers is not None


def test_projected_content_counts_as_learned_from_events() -> None:
    table = {"data": {"path": "shop"}, "model": {}, "tokenizer": {"name": "residual-kmeans"}}
    assert not learns_from_events(Recipe.model_validate(table))
    assert learns_from_events(Recipe.model_validate({**table, "content": {"collaborative": True}}))
    assert learns_from_events(Recipe.model_validate({**table, "tokenizer": {"name": "clusters"}}))


def test_a_tokenizer_that_cannot_be_imported_is_noted(tmp_path: Path) -> None:
    data = planted_clusters()
    lines: list[str] = []
    ni.tokenize("random", data, out=tmp_path / "ids", settings={"tokenizer.codebook_size": 16})
    file = tmp_path / "ids" / "recipe.toml"
    file.write_text(file.read_text().replace('name = "random"', 'name = "elsewhere.codes:Mine"'))
    ni.train(
        "tiger",
        data,
        out=tmp_path / "run",
        ids=tmp_path / "ids",
        recipe="debug/tiger",
        settings={"training.max_epochs": 1},
        log=lines.append,
    )
    assert any("learned from events is unknown" in line for line in lines)
