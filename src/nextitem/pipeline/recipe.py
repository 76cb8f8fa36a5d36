"""Recipe: all settings of a run, fully resolved, as one TOML file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nextitem.core import registry
from nextitem.core.components import component_class
from nextitem.core.config import Config, apply_overrides, merge_tables, parse
from nextitem.core.errors import UserError
from nextitem.core.recommender import Recommender
from nextitem.data.text import ContentConfig
from nextitem.recipes import default_recipe, read_recipe
from nextitem.tokenizers.quality import QualityConfig
from nextitem.training.config import TrainingConfig


class DataTable(Config):
    """Table [data] of a recipe: the data of a run and how they are split."""

    path: str
    """Dataset folder, or "shop" for the simulated shop."""
    protocol: str | None = None
    """Protocol by which the data are split into training, validation and test; None: the default of the data set."""
    drop_unknown_items: bool = False
    """Skip events whose item is not in the items file; otherwise they are an error."""
    refit: bool = False
    """Train again on training and validation events, for the number of epochs that was best on validation."""
    fingerprint: str | None = None
    """Fingerprint of the data that a run was trained on; written by the run."""
    split_seed: int | None = None
    """Seed by which the split sampled its users, if the protocol samples any; written by the run."""


class Recipe(Config):
    """All settings of one run. `model` and `tokenizer` contain `name` and the fields of that class's Config."""

    seed: int = 0
    """Seed of initial weights, shuffling and sampling."""
    data: DataTable
    """Data of the run and how they are split."""
    model: dict[str, Any]
    """Name and settings of the model."""
    training: TrainingConfig = TrainingConfig()
    """Training settings of a model that learns by gradient."""
    stages: dict[str, TrainingConfig] = {}
    """Training settings of the stages of a cascade (channels by name, "pre-ranking", "ranking") or parts of a blend."""
    content: ContentConfig = ContentConfig()
    """Content vectors of the items' text, for models and tokenizers that read them."""
    content_training: TrainingConfig = TrainingConfig(max_epochs=10, batch_size=512)
    """Training settings of the content vectors if content.collaborative is true."""
    tokenizer: dict[str, Any] | None = None
    """Name and settings of the tokenizer that creates semantic IDs, for models that need them."""
    tokenizer_training: TrainingConfig = TrainingConfig()
    """Training settings of a tokenizer that learns by gradient."""
    quality: QualityConfig = QualityConfig()
    """Limits beyond which semantic IDs count as collapsed."""
    ids: str | None = None
    """Folder of existing semantic IDs, instead of a tokenizer."""


def model_name(model: str | type[Recommender]) -> str:
    """Return the name of a model: the name itself, or for a class its registered name or import path.

    Warns of a class that is defined in the script or notebook itself. Raises UserError if the class cannot be imported
    by its path.
    """
    if isinstance(model, str):
        return model
    name = f"{model.__module__}:{model.__qualname__}"
    if model.__module__ == "__main__":
        warnings.warn(
            f"{model.__qualname__} is defined in the script or notebook itself, so its run cannot be opened again; "
            "put the class into a module and import it",
            stacklevel=3,
        )
    registered = {entry.path: registered_name for registered_name, entry in registry.MODELS.items()}
    if name not in registered:
        registry.entry("model", name)  # raises if it could not be imported again when the run is opened
    return registered.get(name, name)


def settings_table(settings: Mapping[str, Any] | Config) -> dict[str, Any]:
    """Return the settings argument of `train` as tables of a recipe.

    `settings` are nested tables, tables with dotted keys, the Config of a model, or a TrainingConfig.
    """
    if isinstance(settings, TrainingConfig):
        return {"training": settings.model_dump(exclude_unset=True)}
    if isinstance(settings, Config):
        return {"model": settings.model_dump(exclude_unset=True)}
    table: dict[str, Any] = {}
    for key, value in settings.items():
        for part in reversed(str(key).split(".")):
            value = {part: value}
        table = merge_tables(table, value)
    return {
        key: settings_table(value)[key] if isinstance(value, Config) and key in ("model", "training") else value
        for key, value in table.items()
    }


def run_arguments(
    name: str,
    path: str,
    *,
    protocol: str | None = None,
    refit: bool | None = None,
    drop: bool = False,
    seed: int | None = None,
    ids: str | Path | None = None,
    minutes: float | None = None,
) -> dict[str, Any]:
    """Return the arguments of `train` as tables of a recipe, without those that are None or false."""
    data = {"path": path, "protocol": protocol, "refit": refit, "drop_unknown_items": drop or None}
    tables: dict[str, Any] = {
        "data": {key: value for key, value in data.items() if value is not None},
        "model": {"name": name},
    }
    if minutes is not None:
        tables["training"] = {"max_minutes": minutes}
    top_level = {"seed": seed, "ids": None if ids is None else str(ids)}
    return tables | {key: value for key, value in top_level.items() if value is not None}


def recipe_layers(
    name: str,
    *,
    recipe: str | Path | None,
    arguments: Mapping[str, Any],
    settings: Mapping[str, Any] | Config | None = None,
) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the layers of settings of a run, for `resolve_recipe`: the recipe, the arguments and the settings.

    Args:
        name: name of the model.
        recipe: a .toml file, or the name of a recipe that ships with the package; None: the default of the model.
        arguments: tables of `run_arguments`.
        settings: as in `settings_table`; None: none.

    Raises:
        UserError: there is no such recipe, or it is one of another model.

    """
    base = read_recipe(recipe) if recipe is not None else default_recipe(name)
    if base[1].get("model", {}).get("name", name) != name:
        raise UserError(f"recipe {base[0]} is for {base[1]['model']['name']}, not for {name}")
    layers: list[tuple[str, Mapping[str, Any]]] = [base, ("the arguments", arguments)]
    if settings is not None:
        layers.append(("settings", settings_table(settings)))
    return layers


def resolve_recipe(
    layers: Sequence[tuple[str, Mapping[str, Any]]], *, overrides: Sequence[str] = (), kind: str = "model"
) -> Recipe:
    """Merge tables of settings, apply overrides, and fill in every default.

    Args:
        layers: pairs of (where the settings come from, tables of a recipe); later layers override earlier ones.
        overrides: settings as text, as `--set` takes them; they override all layers.
        kind: what the recipe is of, model or tokenizer.

    Returns:
        The recipe with every setting, so that it reproduces the run.

    Raises:
        UserError: an unknown setting or an invalid value.

    """
    values: dict[str, Any] = {}
    for _, table in [*layers, ("--set", _names_in(overrides))]:
        for part in {kind, "tokenizer"}:
            named = table.get(part, {}).get("name") if isinstance(table.get(part), Mapping) else None
            if named is not None and named != (values.get(part) or {}).get("name", named):
                values[part] = {}  # another model or tokenizer: settings of the previous one do not apply
        values = merge_tables(values, table)
    values = apply_overrides(values, overrides)
    sources = [name for name, _ in layers] + ["--set"] * bool(overrides)
    recipe = parse(Recipe, values, where=" and ".join(sources))
    changes: dict[str, Any] = {}
    if recipe.model:
        changes["model"] = {
            "name": recipe.model.get("name"),
            **component_class("model", recipe.model)[1].as_table(),
        }
    if recipe.tokenizer is not None:
        settings = component_class("tokenizer", recipe.tokenizer)[1].as_table()
        changes["tokenizer"] = {"name": recipe.tokenizer["name"], **settings}
    return recipe.model_copy(update=changes)


def _names_in(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the names of model and tokenizer that `--set` contains, as tables."""
    names = [override for override in overrides if override.startswith(("model.name=", "tokenizer.name="))]
    parts = apply_overrides({}, names)
    return {part: {"name": table["name"]} for part, table in parts.items()}
