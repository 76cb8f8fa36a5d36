"""Recipes: precedence of layers, unknown settings, and the recipes of the package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.optional import not_none

from nextitem.core.config import read_toml
from nextitem.core.errors import UserError
from nextitem.pipeline.bundle import load_recipe, save_recipe
from nextitem.pipeline.recipe import resolve_recipe
from nextitem.recipes import read_recipe, shipped_recipes

Layer = tuple[str, Mapping[str, Any]]
DATA: Layer = ("test", {"data": {"path": "shop"}})


def test_overrides_precede_arguments_then_recipe_then_defaults() -> None:
    recipe = ("recipe", {"model": {"name": "sasrec", "width": 16, "dropout": 0.3}, "seed": 1})
    arguments = ("the command line", {"model": {"name": "sasrec"}, "seed": 2, "training": {"batch_size": 7}})
    resolved = resolve_recipe([DATA, recipe, arguments], overrides=["model.width=32", "training.batch_size=9"])
    assert (resolved.model["width"], resolved.model["dropout"], resolved.seed) == (32, 0.3, 2)
    assert resolved.training.batch_size == 9
    assert "layers" in resolved.model


def test_another_model_drops_the_settings_of_the_previous_one() -> None:
    layers: list[Layer] = [
        DATA,
        ("a", {"model": {"name": "sasrec", "width": 16}}),
        ("b", {"model": {"name": "popularity"}}),
    ]
    assert "width" not in resolve_recipe(layers).model


def test_another_tokenizer_drops_the_settings_of_the_previous_one() -> None:
    layers: list[Layer] = [DATA, ("a", {"model": {"name": "tiger"}, "tokenizer": {"name": "rq-vae", "levels": 2}})]
    by_layer = resolve_recipe([*layers, ("b", {"tokenizer": {"name": "tree"}})])
    by_override = resolve_recipe(layers, overrides=["tokenizer.name=tree", "tokenizer.codebook_size=4"])
    assert by_layer.tokenizer is not None
    assert by_override.tokenizer is not None
    assert by_layer.tokenizer["codebook_size"] == 2
    assert by_override.tokenizer["codebook_size"] == 4
    assert "levels" not in by_override.tokenizer
    assert not_none(resolve_recipe(layers, overrides=["tokenizer.name=rq-vae"]).tokenizer)["levels"] == 2


@pytest.mark.parametrize("override", ["model.colour=1", "training.colour=1", "colour=1", "content.colour=1"])
def test_unknown_settings_are_refused(override: str) -> None:
    with pytest.raises(UserError, match="colour"):
        resolve_recipe([DATA, ("a", {"model": {"name": "sasrec"}})], overrides=[override])


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_resolves(name: str) -> None:
    where, table = read_recipe(name)
    recipe = resolve_recipe([DATA, (where, table)])
    assert recipe.model["name"] == name.split("/")[1].rsplit("-", 1)[0] or recipe.model["name"] in name


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_saved_recipe_loads_as_the_same_recipe(name: str, tmp_path: Path) -> None:
    recipe = resolve_recipe([DATA, read_recipe(name)])
    save_recipe(tmp_path, recipe)
    assert load_recipe(tmp_path) == recipe
    assert read_toml(tmp_path / "recipe.toml")["model"]["name"] == recipe.model["name"]


def test_an_unknown_recipe_is_refused_with_a_list_of_recipes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recipe is called 'x'; .*debug/sasrec"):
        read_recipe("x")
    with pytest.raises(UserError, match="no such file"):
        read_recipe(tmp_path / "x.toml")
    with pytest.raises(UserError, match="is not a run"):
        load_recipe(tmp_path)
