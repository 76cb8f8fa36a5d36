"""Recipe: everything that a run was told, fully resolved, as one TOML file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from nextitem.core import registry
from nextitem.core.components import component_class
from nextitem.core.config import Config, apply_overrides, merge_tables, parse
from nextitem.core.recommender import Recommender
from nextitem.data.text import ContentConfig
from nextitem.tokenizers.quality import QualityConfig
from nextitem.training.config import TrainingConfig


class DataTable(Config):
    """What a run learns from."""

    path: str
    """A dataset folder, or "shop"."""
    protocol: str | None = None
    """How it is split; None: the data set's default."""
    drop_unknown_items: bool = False
    """Leave out events whose item is not in the items file."""
    refit: bool = False
    """Retrain on training and validation events for the chosen number of epochs."""
    fingerprint: str | None = None
    """Of the data that a run was trained on; written by the run."""
    split_seed: int | None = None
    """By which the split sampled its users, if it samples any; written by the run."""


class Recipe(Config):
    """One run. `model` and `tokenizer` hold `name` and the fields of the named class's Config."""

    seed: int = 0
    """Of weights, shuffling and sampling."""
    data: DataTable
    """What the run learns from."""
    model: dict[str, Any]
    """Name and settings of the model."""
    training: TrainingConfig = TrainingConfig()
    """For models that learn by gradient."""
    stages: dict[str, TrainingConfig] = {}
    """Of a cascade: channel names, "pre-ranking", "ranking"."""
    content: ContentConfig = ContentConfig()
    """Text vectors, for models and tokenizers that read them."""
    content_training: TrainingConfig = TrainingConfig(max_epochs=10, batch_size=512)
    """Where content.collaborative."""
    tokenizer: dict[str, Any] | None = None
    """What makes the semantic IDs, for models that need them."""
    tokenizer_training: TrainingConfig = TrainingConfig()
    """For tokenizers that learn by gradient."""
    quality: QualityConfig = QualityConfig()
    """Below these figures a tokenizer counts as collapsed."""
    ids: str | None = None
    """Folder of ready semantic IDs, instead of a tokenizer."""


def model_name(model: str | type[Recommender]) -> str:
    """Return the name of a model: itself, or the import path of a class."""
    if isinstance(model, str):
        return model
    name = f"{model.__module__}:{model.__qualname__}"
    if model.__module__ == "__main__":
        warnings.warn(
            f"{model.__qualname__} is defined in the script or notebook itself, so its run cannot be opened again; "
            "put the class into a module and import it",
            stacklevel=3,
        )
    registered = {entry.path: own for own, entry in registry.MODELS.items()}
    if name not in registered:
        registry.entry("model", name)  # can it be imported again, when the run is opened?
    return registered.get(name, name)


def settings_table(settings: Mapping[str, Any] | Config) -> dict[str, Any]:
    """Return settings of `train` as tables of a recipe: nested, with dotted keys, or the Config of a part."""
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


def resolve_recipe(
    layers: Sequence[tuple[str, Mapping[str, Any]]], *, overrides: Sequence[str] = (), kind: str = "model"
) -> Recipe:
    """Lays tables upon one another (later wins), applies `--set`, and fills in every default.

    `layers` are (where they came from, tables). The answer names every setting, so that it reproduces the run.
    """
    values: dict[str, Any] = {}
    for _, table in [*layers, ("--set", _names_in(overrides))]:
        for part in {kind, "tokenizer"}:
            named = table.get(part, {}).get("name") if isinstance(table.get(part), Mapping) else None
            if named is not None and named != (values.get(part) or {}).get("name", named):
                values[part] = {}  # another model or tokenizer: the fields of the former mean nothing
        values = merge_tables(values, table)
    values = apply_overrides(values, overrides)
    sources = [name for name, _ in layers] + ["--set"] * bool(overrides)
    recipe = parse(Recipe, values, where=" and ".join(sources))
    changes: dict[str, Any] = {}
    if recipe.model:
        changes["model"] = {
            "name": recipe.model.get("name"),
            **component_class("model", recipe.model)[1].model_dump(),
        }
    if recipe.tokenizer is not None:
        settings = component_class("tokenizer", recipe.tokenizer)[1].model_dump()
        changes["tokenizer"] = {"name": recipe.tokenizer["name"], **settings}
    return recipe.model_copy(update=changes)


def _names_in(overrides: Sequence[str]) -> dict[str, Any]:
    """The model and the tokenizer that `--set` names."""
    parts = apply_overrides({}, [each for each in overrides if each.startswith(("model.name=", "tokenizer.name="))])
    return {part: {"name": table["name"]} for part, table in parts.items()}
