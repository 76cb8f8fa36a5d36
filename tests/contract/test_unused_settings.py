"""Settings that have no effect beside the others: each is named, and what is named really has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_steps import three_losses

from nextitem.core.components import build_component, component_class
from nextitem.core.config import Config, parse
from nextitem.core.recommender import Recommender
from nextitem.core.registry import MODELS
from nextitem.neighbours.ann_index import AnnIndexConfig
from nextitem.pipeline.options import FitOptions
from nextitem.pipeline.recipe import resolve_recipe
from nextitem.pipeline.tokenize import require_identifiers, with_content
from nextitem.recipes import read_recipe
from nextitem.testing.known_answers import DATASETS

# Model, settings that hold, and a field that then has no effect with another value of it.
IDLE: list[tuple[str, dict[str, Any], str, Any]] = [
    ("sasrec", {"objective": "full-softmax"}, "num_negatives", 3),
    ("sasrec", {"objective": "full-softmax"}, "negatives_shared_by", "position"),
    ("sasrec", {"objective": "full-softmax"}, "negatives_power", 0.5),
    ("sasrec", {"objective": "full-softmax"}, "gbce_calibration", 0.1),
    ("sasrec", {"objective": "sampled-softmax"}, "gbce_calibration", 0.1),
    ("sasrec", {"objective": "bce"}, "negatives_power", 0.5),
    ("sasrec", {"objective": "bce"}, "negatives_shared_by", "sequence"),
    ("sasrec", {"objective": "bce"}, "gbce_calibration", 0.1),
    ("sasrec", {"objective": "gbce"}, "negatives_power", 0.5),
    ("sasrec", {"objective": "gbce"}, "negatives_shared_by", "sequence"),
    ("sasrec", {}, "features_merge", "concat"),
    ("sasrec", {}, "contrastive_temperature", 0.5),
    ("sasrec", {}, "contrastive_crop", 0.5),
    ("sasrec", {}, "contrastive_mask", 0.5),
    ("sasrec", {}, "contrastive_reorder", 0.5),
    ("hstu", {"objective": "full-softmax"}, "num_negatives", 3),
    ("hstu", {"objective": "full-softmax"}, "negatives_shared_by", "position"),
    ("hstu", {}, "num_actions", 3),
    ("nextitnet", {"objective": "full-softmax"}, "num_negatives", 3),
    ("gru4rec", {}, "embedding_width", 7),
    ("gru4rec", {"embedding": "one-hot"}, "dropout_embedding", 0.5),
    ("gru4rec", {"num_negatives": 0}, "negatives_power", 1.0),
    ("gru4rec", {"objective": "bpr-max"}, "log_q", "textbook"),
    ("gru4rec", {"objective": "top1-max"}, "score_regularisation", 0.3),
    ("gru4rec", {"objective": "cross-entropy"}, "elu", 0.5),
    ("gru4rec", {"objective": "bpr"}, "elu", 0.5),
    ("two-tower", {}, "refresh_steps", 1),
    ("two-tower", {}, "teacher_weight", 0.1),
    ("tiger", {}, "training_beam", 2),
    ("tiger", {}, "new_items_reserved", True),
    ("cobra", {"dense": False}, "content_hidden", 5),
    ("cobra", {"dense": False}, "temperature", 0.1),
    ("cobra", {"dense": False}, "dense_weight", 0.1),
    ("cobra", {"dense": False}, "log_q", "loss"),
    ("tdm", {"objective": "levels"}, "training_beam", 1),
    ("tdm", {"objective": "beam-aware"}, "negatives", 1),
    ("jtm", {"relearn_after": []}, "segment", 1),
]

# The opposite: settings that give the field a meaning.
EFFECTIVE: list[tuple[str, dict[str, Any], str, Any]] = [
    ("sasrec", {"objective": "bce"}, "num_negatives", 3),
    ("sasrec", {"objective": "gbce", "num_negatives": 4}, "gbce_calibration", 0.1),
    ("sasrec", {"objective": "sampled-softmax", "num_negatives": 4}, "negatives_power", 1.0),
    ("sasrec", {"contrastive_weight": 0.1}, "contrastive_crop", 0.2),
    ("hstu", {"objective": "sampled-softmax"}, "num_negatives", 3),
    ("nextitnet", {"objective": "sampled-softmax"}, "num_negatives", 3),
    ("gru4rec", {"objective": "bpr-max"}, "elu", 0.5),
    ("gru4rec", {"objective": "bpr-max"}, "score_regularisation", 0.3),
    ("gru4rec", {"embedding": "shared"}, "dropout_embedding", 0.5),
    ("two-tower", {"hard_negatives": 2}, "refresh_steps", 1),
    ("tiger", {"beam_aware": 0.5}, "training_beam", 2),
    ("cobra", {"dense": True}, "temperature", 0.5),
    ("tdm", {"objective": "levels"}, "negatives", 1),
]


def losses(name: str, settings: dict[str, Any]) -> list[float]:
    """Three training losses of a model's debug recipe with other settings, on the cycle."""
    dataset = DATASETS["cycle"]()
    recipe = resolve_recipe([read_recipe(f"debug/{name}"), ("test", {"data": {"path": "-"}, "model": settings})])
    kind, config = component_class("model", recipe.model)
    needs = getattr(kind, "needs", frozenset()) | getattr(config, "needs", frozenset())
    if "content" in needs:
        dataset = with_content(dataset, recipe, progress=False)
    if "identifiers" in needs:
        dataset = require_identifiers(dataset, recipe, FitOptions(Path(), progress=False))
    torch.manual_seed(0)
    model: Recommender = build_component("model", recipe.model, dataset.catalog)
    model.set_popularity(torch.from_numpy(dataset.interactions.item_counts()).float())
    return three_losses(model, dataset)


def unused(name: str, settings: dict[str, Any]) -> tuple[str, ...]:
    return parse(MODELS[name].load().Config, settings, where="test").unused_settings()


@pytest.mark.parametrize(("name", "settings", "field", "value"), IDLE)
def test_a_setting_without_effect_is_named_and_changes_no_loss(
    name: str, settings: dict[str, Any], field: str, value: Any
) -> None:
    sentences = unused(name, {**settings, field: value})
    assert len(sentences) == 1
    assert sentences[0].startswith(f"{field} = {value!r} has no effect: ")
    assert losses(name, {**settings, field: value}) == losses(name, settings)


@pytest.mark.parametrize(("name", "settings", "field", "value"), EFFECTIVE)
def test_a_setting_with_effect_is_not_named_and_changes_the_loss(
    name: str, settings: dict[str, Any], field: str, value: Any
) -> None:
    assert unused(name, {**settings, field: value}) == ()
    assert losses(name, {**settings, field: value}) != losses(name, settings)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_not_set_is_not_named(name: str) -> None:
    """Defaults say nothing, and idle fields are fields of the config."""
    kind: type[Config] = MODELS[name].load().Config
    if name == "cascade":
        return  # it has no defaults
    assert kind().unused_settings() == ()
    assert set(kind().idle_fields()) <= set(kind.model_fields)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "cascade"])
def test_shipped_recipes_set_nothing_without_effect(name: str) -> None:
    for folder in ("debug", "default"):
        try:
            table = dict(read_recipe(f"{folder}/{name}")[1]["model"])
        except ValueError:
            continue
        table.pop("name")
        assert unused(name, table) == ()


def test_settings_of_a_part_are_named_with_the_part() -> None:
    (sentence,) = unused("two-tower", {"index": {"kind": "hnsw", "links": 8, "probes": 4}})
    assert sentence == "index.probes = 4 has no effect: kind is hnsw"
    assert len(AnnIndexConfig(kind="exact", recall_at=10, code_bytes=4).unused_settings()) == 2
    assert unused("item-graph", {"use_content": False, "content_floor": 0.1}) == (
        "content_floor = 0.1 has no effect: use_content is false",
    )
