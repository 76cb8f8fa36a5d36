"""Search spaces: what is derived from configs, and what users name."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from nextitem.core.components import component_class
from nextitem.core.config import Choice, Config, parse
from nextitem.core.errors import UserError
from nextitem.core.registry import KINDS, MODELS
from nextitem.decoding.guidance import GuidedConfig
from nextitem.models.item_graph import PublishedWalk
from nextitem.pipeline.recipe import Recipe, recipe_layers, resolve_recipe, run_arguments
from nextitem.pipeline.stages import learns_by_gradient
from nextitem.pipeline.tuning.named_space import build_space, parse_space
from nextitem.pipeline.tuning.space import (
    FIXED_FIELDS,
    Choices,
    Dimension,
    Range,
    SearchSpace,
    derive_space,
    is_below,
    round_to_digits,
    value_at,
)


def recipe_of(model: str, overrides: list[str] | None = None) -> Recipe:
    arguments = run_arguments(model, "nowhere")
    return resolve_recipe(recipe_layers(model, recipe=None, arguments=arguments), overrides=overrides or [])


def config_of(model: str) -> Any:
    return KINDS["model"][model].load().Config


def space_of(model: str, texts: list[str] | Mapping[str, Any] = (), **options: Any) -> SearchSpace:  # type: ignore[assignment]
    recipe = recipe_of(model, options.pop("overrides", None))
    config = component_class("model", recipe.model)[1]
    has_training = learns_by_gradient(recipe.model) and model not in ("cascade", "blend")
    training = recipe.training if has_training else None
    return build_space(recipe.model_dump(), config, training=training, texts=texts, **options)


def random_value(generator: random.Random, dimension: Dimension) -> Any:
    values = dimension.values
    if isinstance(values, Choices):
        return generator.choice(values.values)
    return round_to_digits(generator.uniform(values.low, values.high), values)


class Part(Config):
    depth: int = Field(2, ge=1, le=3)


class Left(Choice):
    kind: Literal["left"] = "left"
    shared: int = Field(10, ge=1)
    own: float = Field(2.0, gt=0)


class Right(Choice):
    kind: Literal["right"] = "right"
    shared: int = Field(100, ge=1)
    pair: tuple[float, ...] = (4.0, 2.0)
    part: Part = Part()


class Example(Config):
    """A config with a field of every sort that a search meets."""

    side: Left | Right = Field(Left(), discriminator="kind")
    switch: bool = True
    mode: Literal["fast", "slow"] | None = "fast"
    share: float = Field(0.25, ge=0, lt=1)
    weight: float = Field(0.5, ge=0)
    none_yet: float | None = None
    automatic: float | Literal["auto"] = "auto"
    zero: float = Field(0.0, ge=0)
    weights: tuple[float, ...] = (1.0, 0.0, 0.2)
    many: tuple[float, ...] = (1.0,) * 5
    layers: tuple[int, ...] = (64, 32)
    names: tuple[str, ...] = ("a",)
    part: Part = Part()
    beam_width: int = 20

    def idle_fields(self) -> dict[str, str]:
        return {} if self.switch else {"weight": "switch is off", "weights": "switch is off"}


def test_each_sort_of_field_has_its_values() -> None:
    dimensions = list(derive_space(Example(), prefix="model"))
    assert [each.name for each in dimensions if not each.is_default] == [f"model.many.{index}" for index in range(5)]
    assert {each.key: str(each.values) for each in dimensions if each.is_default} == {
        "model.side.kind": "left, right",
        "model.side.shared (left)": "2, 5, 10, 20, 40",
        "model.side.own (left)": "0.2..20:log",
        "model.side.shared (right)": "25, 50, 100, 200, 400",
        "model.side.pair.0 (right)": "0.4..40:log",
        "model.side.pair.1 (right)": "0.2..20:log",
        "model.side.part.depth (right)": "1, 2",
        "model.switch": "false, true",
        "model.mode": "fast, slow, none",
        "model.share": "0..0.95",
        "model.weight": "0.05..5:log",
        "model.weights.0": "0.1..10:log",
        "model.weights.2": "0.02..2:log",
        "model.part.depth": "1, 2",
    }


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_a_space_of_valid_values_around_its_defaults(model: str) -> None:
    space = space_of(model)
    assert space.dimensions
    for dimension in space.dimensions:
        default = value_at(space.tables, dimension.name)
        if not dimension.kinds or value_at(space.tables, dimension.kind_name) in dimension.kinds:
            assert dimension.values.contains(default), dimension
        values = dimension.values
        for value in values.values if isinstance(values, Choices) else (values.low, values.high):
            kinds = {dimension.kind_name: dimension.kinds[0]} if dimension.kinds else {}
            tables = space.with_values({**kinds, dimension.name: value})
            assert value_at(resolve_recipe([("test", tables)]).model_dump(), dimension.name) in (value, None)


@pytest.mark.parametrize("model", MODELS)
def test_settings_without_effect_are_not_varied(model: str) -> None:
    space, generator = space_of(model), random.Random(0)
    for _ in range(20):
        settings = space.select(lambda dimension, _: random_value(generator, dimension))
        tables = space.with_values(settings)
        idle = space.idle(tables)
        assert not [name for name in settings if is_below(name, idle)]
        recipe = resolve_recipe([("test", tables)])
        for name, value in settings.items():
            read = value_at(recipe.model_dump(), name)
            assert read == (None if value == "none" else value)


def test_the_default_settings_are_those_of_the_recipe() -> None:
    space = space_of("sasrec")
    default = space.default()
    assert default["model.objective.kind"] == "sampled-softmax"
    assert default["model.objective.num_negatives"] == 1024
    assert "model.features_merge" not in default  # idle without features
    assert space.with_values(default) == dict(space.tables)


def test_every_setting_is_tried_sooner_or_later_under_each_of_its_kinds() -> None:
    tables = {"model": {"name": "example", **Example().model_dump()}}
    for texts in ([], ["model", "model.many"]):
        space = build_space(tables, Example(), training=None, texts=texts)
        tried: set[tuple[str, str]] = set()
        for side in ("left", "right"):
            settings = space.select(
                lambda each, _, side=side: (
                    side if each.name == "model.side.kind" else random_value(random.Random(0), each)
                )  # type: ignore[misc]
            )
            tried |= {(side, name) for name in settings}
            table = {name: value for name, value in space.with_values(settings)["model"].items() if name != "name"}
            example = {"model": parse(Example, table, where="test").model_dump()}
            read = {name: value_at(example, name) for name in settings}
            assert read == {name: None if value == "none" else value for name, value in settings.items()}
        for each in space.dimensions:
            assert {(kind, each.name) for kind in each.kinds or ("left", "right")} <= tried


def test_all_weights_of_the_item_graph_are_searched_within_the_walk() -> None:
    space = space_of("item-graph")
    tried = {}
    for kind in ("wide", "published"):
        settings = space.select(lambda each, default, kind=kind: kind if each.name == "model.walk.kind" else default)  # type: ignore[misc]
        tried[kind] = {name.removeprefix("model.walk.") for name in settings}
        assert not [name for name in settings if name.startswith("training.")]
    both = {"kind", "backward", "previous_weight", "content_floor", "content_weight", "model.use_content"}
    near = {f"near_lag_weights.{lag}" for lag in range(3)} | {
        "near_backward",
        "count_weight",
        "decay",
        "max_transitions",
    }
    assert tried["wide"] == both | near  # its eight lag weights are too many
    assert tried["published"] == both | {f"lag_weights.{lag}" for lag in range(3)} | {"second_step"}
    names = [each.name for each in space_of("item-graph", ["model.walk", "model.walk.lag_weights"]).dimensions]
    assert {f"model.walk.lag_weights.{lag}" for lag in range(8)} <= set(names)


def test_a_kind_names_the_settings_and_the_numbers_that_only_it_has() -> None:
    texts = ["model.walk=wide,published", "model.walk.lag_weights.5=0.1..1", "model.walk.lag_weights.1=0.1..1"]
    kinds = {each.name: each.kinds for each in space_of("item-graph", texts).dimensions}
    assert kinds["model.walk.lag_weights.5"] == ("wide",)
    assert kinds["model.walk.lag_weights.1"] == ()  # all of them
    with pytest.raises(UserError, match=r"model.walk.kind is 'wide', and the setting belongs to published"):
        space_of("item-graph", ["model.walk.second_step=0..1"])
    with pytest.raises(UserError, match="none of wide, published has such a setting"):
        space_of("item-graph", ["model.walk.lag_weights.8=0..1"])


@pytest.mark.parametrize("model", [name for name in MODELS if issubclass(config_of(name), GuidedConfig)])
def test_a_guide_is_varied_only_if_it_is_named(model: str) -> None:
    guided = space_of(model, overrides=["model.guide={}"])
    assert {each.key for each in guided.dimensions} == {each.key for each in space_of(model).dimensions}
    texts = ["model.guide.weight=0.2,0.5", "model.guide.model.walk.count_weight=0..1"]
    named = space_of(model, texts, overrides=["model.guide={}"])
    values = {"model.guide.weight": 0.5, "model.guide.model.walk.count_weight": 0.07}
    assert {each.name for each in named.dimensions} == set(values)
    assert all(each.values.contains(values[each.name]) for each in named.dimensions)
    recipe = resolve_recipe([("test", named.with_values(values))])
    guide = recipe.model["guide"]
    assert (guide["weight"], guide["model"]["walk"]["count_weight"]) == (0.5, 0.07)


def test_settings_of_a_kind_are_selected_with_their_kind_only() -> None:
    space = space_of("sasrec", ["model.objective=bce,gbce,full-softmax", "model.objective.num_negatives=1..50:log"])
    for kind in ("bce", "gbce", "full-softmax"):
        settings = space.select(lambda dimension, _, kind=kind: kind if dimension.name.endswith("kind") else 7)  # type: ignore[misc]
        assert settings["model.objective.kind"] == kind
        assert ("model.objective.num_negatives" in settings) == (kind != "full-softmax")
        objective = space.with_values(settings)["model"]["objective"]
        assert {**objective, "calibration": 0.75} == {
            **{"kind": kind, "calibration": 0.75},
            **({"num_negatives": 7} if kind != "full-softmax" else {"target_weights": (1.0,)}),
        }


def test_one_element_of_a_tuple_is_changed_and_the_recipe_stays() -> None:
    space = space_of("item-graph")
    walk = space.with_values({"model.walk.near_lag_weights.1": 0.9})["model"]["walk"]
    assert walk["near_lag_weights"] == [1.0, 0.9, 0.17]
    assert space.tables["model"]["walk"]["near_lag_weights"] == [1.0, 0.42, 0.17]
    other = space.with_values({"model.walk.lag_weights.1": 0.9, "model.walk.kind": "published"})["model"]["walk"]
    assert other == {**PublishedWalk().as_table(), "lag_weights": [1.0, 0.9, 0.25]}


def test_settings_that_the_user_has_set_are_not_varied_unless_named() -> None:
    fixed_names = ["model.walk.decay", "model.walk.near_lag_weights"]
    names = {each.name for each in space_of("item-graph", fixed_names=fixed_names).dimensions}
    assert "model.walk.backward" in names
    assert not [name for name in names if is_below(name, set(fixed_names))]
    named = space_of("item-graph", ["model.walk.decay=0.1..0.9"], fixed_names=fixed_names)
    assert [each.name for each in named.dimensions] == ["model.walk.decay"]


@pytest.mark.parametrize("name", ["model.walk", "model.walk.kind"])
def test_a_kind_that_the_user_has_set_is_not_varied_but_its_settings_are(name: str) -> None:
    space = space_of("item-graph", overrides=[f"{name}=published"], fixed_names=[name])
    keys = {each.key for each in space.dimensions}
    assert keys == {
        *(each.key for each in space_of("item-graph").dimensions if each.kinds == ("published",)),
        "model.use_content",
    }


def test_names_without_values_select_what_is_derived() -> None:
    space = space_of("item-graph", ["model.walk.near_lag_weights", "model.walk.lag_weights.7", "model.walk.decay=0..1"])
    assert [(each.name, str(each.values)) for each in space.dimensions] == [
        ("model.walk.near_lag_weights.0", "0.1..10:log"),
        ("model.walk.near_lag_weights.1", "0.042..4.2:log"),
        ("model.walk.near_lag_weights.2", "0.017..1.7:log"),
        ("model.walk.lag_weights.7", "0.023..2.3:log"),
        ("model.walk.decay", "0..1"),
    ]
    both = space_of("sasrec", ["model", "training", "model.temperature=0.05..1:log"])
    assert {each.key for each in both.dimensions} == {
        *(each.key for each in space_of("sasrec").dimensions),
        "model.temperature",
    }


def test_values_that_the_user_names_replace_derived_ones_in_any_order() -> None:
    texts = ["model.objective=bce,gbce", "model.dropout=0.1..0.2", "model"]
    for each in (texts, texts[::-1]):
        values = {dimension.key: str(dimension.values) for dimension in space_of("sasrec", each).dimensions}
        assert values["model.objective.kind"] == "bce, gbce"
        assert values["model.dropout"] == "0.1..0.2"


def test_values_are_read_as_numbers_texts_and_lists(tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text('[model]\nwidth = [64, 32]\ndropout = "0.1..0.5"\n')
    assert parse_space(["model.width=64,32", "model.dropout=0.1..0.5"]) == parse_space([str(tmp_path / "space.toml")])
    assert parse_space({"model": {"width": [64, 32], "dropout": "0.1..0.5"}}) == {
        "model.width": Choices((32, 64)),
        "model.dropout": Range(0.1, 0.5),
    }
    assert parse_space(["a=1e-4..1e-2:log"]) == {"a": Range(1e-4, 1e-2, is_log=True)}
    assert parse_space(["a=1..8"]) == {"a": Range(1, 8, is_integer=True)}
    assert parse_space(["a=-2..-1"]) == {"a": Range(-2, -1, is_integer=True)}
    assert parse_space(["a=bce, gbce"]) == {"a": Choices(("bce", "gbce"))}
    assert parse_space(["a=none,7,true"]) == {"a": Choices(("none", 7, True))}
    assert parse_space(["a=[100],[100, 50]"]) == {"a": Choices(([100], [100, 50]))}
    assert parse_space(["a=0,false"]) == {"a": Choices((0, False))}
    assert parse_space(["model"]) == {"model": None}


def test_a_range_of_a_number_that_is_not_whole_is_none_of_whole_numbers() -> None:
    for name in ("model.walk.count_weight", "model.walk.near_lag_weights.1", "training.learning_rate"):
        model = "sasrec" if name.startswith("training") else "item-graph"
        (dimension,) = space_of(model, [f"{name}=0..4"]).dimensions
        assert dimension.values == Range(0, 4)
    both = space_of("item-graph", ["model.walk=wide,published", "model.walk.second_step=0..4"]).dimensions
    assert [each.values for each in both if each.name == "model.walk.second_step"] == [Range(0, 4)]
    (dimension,) = space_of("sasrec", ["model.width=16..64"]).dimensions
    assert dimension.values == Range(16, 64, is_integer=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.width=", "no values"),
        ("model.width=64", "one value only"),
        ("model.width=64,64", "one value only"),
        ("model.width=4..2", "the range is empty"),
        ("model.width=2..2", "the range is empty"),
        ("model.width=0..2:log", "begins above 0"),
        ("model.width=1..inf", "empty or infinite"),
        ("model.width=a..b", "ends of a range are numbers"),
        ("model.features", "no values can be derived"),
        ("model.nothing", "no values can be derived"),
        ("data.path=a,b", "only settings of these tables"),
        ("model.objective.calibration=0.1..0.9", "is 'sampled-softmax', and the setting belongs to gbce"),
        ("model.objective.colour=1,2", "has such a setting"),
        ("model.width.0=1..2", "no such setting, or no such number of a tuple"),
        ("model.width.0.1=1..2", "no such setting"),
        ("training.betas.2=0.1..0.9", "no such number of a tuple; the first one is number 0"),
    ],
)
def test_a_mistake_in_a_space_is_explained(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        space_of("sasrec", [text])


def test_settings_of_training_are_refused_for_a_model_without_gradients() -> None:
    with pytest.raises(UserError, match="does not learn by gradient"):
        space_of("item-cf", ["training.learning_rate=1e-4..1e-2"])


def test_the_fields_that_are_never_derived_exist() -> None:
    fields: set[str] = set()

    def collect(config: type[Config]) -> None:
        fields.update(config.model_fields)
        for field in config.model_fields.values():
            text = [field.annotation, *getattr(field.annotation, "__args__", ())]
            for each in text:
                if isinstance(each, type) and issubclass(each, Config):
                    collect(each)

    for entry in KINDS["model"].values():
        collect(entry.load().Config)
    assert set(FIXED_FIELDS) <= fields
