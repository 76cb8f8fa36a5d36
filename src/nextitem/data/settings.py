"""dataset.toml: what an owner says about the tables of a data set."""

from __future__ import annotations

import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic

from nextitem.core import config as configs
from nextitem.core.errors import UserError

FeatureType = Literal["categorical", "categorical-list", "numeric", "text", "history", "timestamp"]


class InteractionSettings(configs.Config):
    """Table [interactions]."""

    positive_actions: tuple[str, ...] | None = None  # actions that may be targets; None: every action
    labels: tuple[str, ...] = ()  # label columns: numbers, for example like or rating
    context: dict[str, FeatureType] = {}  # context columns -> feature type
    rename: dict[str, str] = {}  # name of DESIGN -> name in the file, here and in every table


class ItemSettings(configs.Config):
    """Table [items]."""

    text: str | None = None  # content sentence, "{title}. {brand}"; None: title, category, brand, description
    features: dict[str, FeatureType] = {}  # item columns -> feature type
    released: str | None = None  # column of release times
    rename: dict[str, str] = {}


class UserSettings(configs.Config):
    """Table [users]."""

    features: dict[str, FeatureType] = {}  # user columns -> feature type
    rename: dict[str, str] = {}


class ImpressionSettings(configs.Config):
    """Table [impressions]."""

    labels: tuple[str, ...] = ()  # label columns: numbers, for example click
    context: dict[str, FeatureType] = {}  # context columns -> feature type
    rename: dict[str, str] = {}


class DatasetSettings(configs.Config):
    """A whole dataset.toml."""

    name: str | None = None  # None: the folder's name
    repeats: pydantic.StrictBool = True  # may an item that the user has seen be recommended?
    interactions: InteractionSettings = InteractionSettings()
    items: ItemSettings = ItemSettings()
    users: UserSettings = UserSettings()
    impressions: ImpressionSettings = ImpressionSettings()


TABLES: dict[str, type[configs.Config]] = {
    "interactions": InteractionSettings,
    "items": ItemSettings,
    "users": UserSettings,
    "impressions": ImpressionSettings,
}


def read_settings(path: Path) -> DatasetSettings:
    """The settings of a dataset.toml, the defaults where there is no such file."""
    return parse_settings(configs.read_toml(path) if path.exists() else {}, where=str(path))


def parse_settings(values: Mapping[str, Any], *, where: str) -> DatasetSettings:
    """Checks settings strictly; UserError names the table, the key and what is known there."""
    top = dict(values)
    for name, kind in TABLES.items():
        if name in top:
            if not isinstance(top[name], Mapping):
                raise UserError(f"{where}: {name} = {top[name]!r}: write it as a table [{name}]")
            top[name] = configs.parse(kind, top[name], where=f"{where}: [{name}]")
    settings = configs.parse(DatasetSettings, top, where=where)
    if settings.items.text is not None:
        template_columns(settings.items.text, where=f"{where}: [items] text")
    return settings


def template_columns(template: str, *, where: str) -> list[tuple[str, str | None]]:
    """The parts of a text template: (literal text, the column that follows it or None)."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"{where} = {template!r}: {error}; write columns as {{title}}") from None
    for _, column, form, conversion in parts:
        if column == "" or form or conversion:
            raise UserError(f"{where} = {template!r}: write columns as {{title}}, with nothing but the name")
    return [(literal, column) for literal, column, _, _ in parts]
