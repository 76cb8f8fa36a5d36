"""Tests of settings that have no effect under the others: each is reported, and reported ones really have none."""

from __future__ import annotations

from typing import Any

import pytest
from support.training_steps import model_losses

from nextitem.core.config import Config, parse
from nextitem.core.registry import MODELS
from nextitem.recipes import read_recipe

# Model, its settings, a field that has no effect under them, and another value of that field.
IDLE: list[tuple[str, dict[str, Any], str, Any]] = [
    ("sasrec", {}, "features_merge", "concat"),
    ("hstu", {}, "num_actions", 3),
    ("gru4rec", {}, "embedding_width", 7),
    ("gru4rec", {"embedding": "one-hot"}, "dropout_embedding", 0.5),
    ("gru4rec", {"num_negatives": 0}, "negatives_power", 1.0),
    ("two-tower", {}, "refresh_steps", 1),
    ("two-tower", {}, "teacher_weight", 0.1),
    ("tiger", {}, "training_beam", 2),
    ("tiger", {}, "new_items_reserved", True),
    ("cobra", {"dense": False}, "content_hidden", 5),
    ("cobra", {"dense": False}, "temperature", 0.1),
    ("cobra", {"dense": False}, "dense_weight", 0.1),
    ("cobra", {"dense": False}, "log_q", "loss"),
    ("jtm", {"relearn_after": []}, "segment", 1),
    ("depth-decoder", {"relearn_after": []}, "relearn_below", 1),
    ("onerec-tr", {}, "positive_length", 3),
    ("onerec-tr", {"lifelong_clusters": 0}, "cluster_size", 9),
    ("lr", {"learn_from": "events"}, "delay_hours", 3.0),
    ("lr", {"learn_from": "events", "position": "ignore"}, "position", "weight"),
    ("lr", {}, "order_by", {"target": 2.0}),
    ("deepfm", {"sharing": "shared-bottom"}, "experts", 2),
    ("deepfm", {"sharing": "mmoe"}, "levels", 1),
    ("dcn", {"version": "v1"}, "rank", 3),
    ("dcn", {"version": "v2"}, "cross_experts", 2),
    ("sim", {"search": "hard"}, "search_width", 3),
    ("sim", {"search": "hard"}, "search_loss", 0.7),
    ("multi-behaviour", {"behaviours": 1}, "heads", 1),
]

GBCE = {"kind": "gbce", "num_negatives": 4}
SAMPLED = {"kind": "sampled-softmax", "num_negatives": 4}
# The opposite: settings under which the field has an effect.
EFFECTIVE: list[tuple[str, dict[str, Any], str, Any]] = [
    ("sasrec", {"objective": "bce"}, "objective", {"kind": "bce", "num_negatives": 3}),
    ("sasrec", {"objective": GBCE}, "objective", {**GBCE, "calibration": 0.1}),
    ("sasrec", {"objective": SAMPLED}, "objective", {**SAMPLED, "power": 1.0}),
    ("sasrec", {"contrastive": {}}, "contrastive", {"crop": 0.2}),
    ("hstu", {"objective": "sampled-softmax"}, "objective", {"kind": "sampled-softmax", "num_negatives": 3}),
    ("nextitnet", {"objective": "sampled-softmax"}, "objective", {"kind": "sampled-softmax", "num_negatives": 3}),
    ("gru4rec", {"objective": "bpr-max"}, "objective", {"kind": "bpr-max", "elu": 0.5}),
    ("gru4rec", {"objective": "bpr-max"}, "objective", {"kind": "bpr-max", "regularisation": 0.3}),
    ("gru4rec", {"embedding": "shared"}, "dropout_embedding", 0.5),
    ("two-tower", {"hard_negatives": 2}, "refresh_steps", 1),
    ("tiger", {"beam_aware": 0.5}, "training_beam", 2),
    ("cobra", {"dense": True}, "temperature", 0.5),
    ("onerec-tr", {"lifelong_clusters": 3}, "lifelong_queries", 1),
    ("tdm", {"objective": "levels"}, "objective", {"negatives": 1}),
    ("deepfm", {"sharing": "mmoe"}, "experts", 2),
    ("dcn", {"version": "v2-mixture"}, "rank", 3),
    ("sim", {"search": "soft"}, "search_loss", 0.7),
]


def unused(name: str, settings: dict[str, Any]) -> tuple[str, ...]:
    config: Config = parse(MODELS[name].load().Config, settings, where="test")
    return config.unused_settings()


@pytest.mark.parametrize(("name", "settings", "field", "value"), IDLE)
def test_a_setting_without_effect_is_reported_and_changes_no_loss(
    name: str, settings: dict[str, Any], field: str, value: Any
) -> None:
    sentences = unused(name, {**settings, field: value})
    assert len(sentences) == 1
    assert sentences[0].startswith(f"{field} = {value!r} has no effect: ")
    assert model_losses(name, **{**settings, field: value}) == model_losses(name, **settings)


@pytest.mark.parametrize(("name", "settings", "field", "value"), EFFECTIVE)
def test_a_setting_with_effect_is_not_reported_and_changes_the_loss(
    name: str, settings: dict[str, Any], field: str, value: Any
) -> None:
    assert unused(name, {**settings, field: value}) == ()
    assert model_losses(name, **{**settings, field: value}) != model_losses(name, **settings)


@pytest.mark.parametrize("name", MODELS)
def test_defaults_are_not_reported(name: str) -> None:
    """Defaults are not reported, and idle fields are fields of the config."""
    kind: type[Config] = MODELS[name].load().Config
    if name in ("cascade", "blend"):
        return  # their parts have no defaults
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


def test_rankers_report_idle_negatives_and_tasks_without_weight() -> None:
    sentences = unused("din", {"learn_from": "impressions", "num_negatives": 3, "negatives_power": 0.5})
    assert [sentence.split(" = ")[0] for sentence in sentences] == ["num_negatives", "negatives_power"]
    tasks = {"tasks": ["click", "buy", "like"]}
    assert unused("din", {**tasks, "order_by": {"click": 1.0, "buy": 0.0, "like": 0.5}}) == (
        "order_by.buy = 0 has no effect: other tasks order alone",
    )
    (sentence,) = unused("din", {**tasks, "order_by": {"click": 1.0, "buy": 0.0}})
    assert sentence.endswith("has no effect: without it the first task orders, too")
    assert unused("din", {**tasks, "order_by": {"buy": 1.0}}) == ()


def test_models_without_gradients_report_their_idle_settings() -> None:
    names = [sentence.split(" = ")[0] for sentence in unused("gbdt", {"leaf_l2": 1.0, "l2": 0.1})]
    assert sorted(names) == ["l2", "leaf_l2"]
    assert unused("gbdt", {"leaf_l2": 1.0, "leaf_regression": True}) == ()
    idle = {"window": None, "decay": 0.5, "repeats": "closest", "half_life_days": 3.0}
    assert len(unused("item-cf", idle)) == 3
    assert unused("item-cf", {**idle, "window": 5}) == ()


def test_settings_of_parts_of_a_cascade_are_reported_with_their_table() -> None:
    ranking = {"model": {"name": "deepfm", "experts": 2, "calibration": "platt"}}
    channels = {"near": {"model": {"name": "item-cf", "window": None, "decay": 0.5}}}
    sentences = unused("cascade", {"channels": channels, "ranking": ranking})
    assert sentences == (
        "[model.channels.near.model] decay = 0.5 has no effect: window is none",
        "[model.ranking.model] experts = 2 has no effect: sharing is shared-bottom",
        "[model.ranking.model] calibration = 'platt' has no effect: stages of a cascade order candidates, and no curve "
        "is fitted to their scores",
    )
    assert unused("cascade", {"channels": {"near": {"model": {"name": "item-cf"}}}}) == ()


def test_settings_of_a_part_are_reported_with_the_part() -> None:
    (sentence,) = unused("tdm", {"objective": {"negatives": 3, "negatives_per_level": [1, 2]}})
    assert sentence == "objective.negatives = 3 has no effect: negatives_per_level replaces it"
    assert unused("item-graph", {"use_content": False, "walk": {"content_floor": 0.1}}) == (
        "walk.content_floor = 0.1 has no effect: use_content is false",
    )
