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
Scalar = pydantic.StrictBool | pydantic.StrictInt | pydantic.StrictFloat | pydantic.StrictStr
Condition = Scalar | tuple[Scalar, ...]  # ">= 4", or the value or values that count (data/conditions.py)
Duplicates = Literal["keep", "drop"] | None  # rows that equal an earlier row; None: keep them, and note how many

# Columns that are read under these names whatever the settings say, so no setting can give them another meaning.
OWN_COLUMNS = {
    "interactions": ("user_id", "session_id", "item_id", "timestamp", "position", "action", "split"),
    "impressions": ("impression_id", "user_id", "item_id", "timestamp", "slot", "propensity"),
    "items": ("item_id",),
    "users": ("user_id",),
}
# Fields of rankers that exist whatever the data has (nn/fields/fields.py): item.id, item.popularity, item.trend.
BUILT_IN_ITEM_FIELDS = ("id", "popularity", "trend")
FIELD_PREFIXES = ("request.", "item.", "user.", "history.", "events.", "cross.", "candidate.")
TEACHER = "teacher"  # the label that a cascade adds: scores of its ranker


class InteractionSettings(configs.Config):
    """Table [interactions]."""

    positive_actions: tuple[str, ...] | None = None
    """Actions that may be targets; None: every action."""
    positive: dict[str, Condition] | None = None
    """Column -> what it must hold in a target; None: anything, with a note."""
    duplicates: Duplicates = None
    """Events that equal an earlier one in every column that is read."""
    labels: tuple[str, ...] = ()
    """Label columns: numbers, for example like or rating."""
    context: dict[str, FeatureType] = {}
    """Context columns -> feature type."""
    rename: dict[str, str] = {}
    """Standard name -> name in the file, here and in every table."""


class ItemSettings(configs.Config):
    """Table [items]."""

    text: str | None = None
    """Content sentence, "{title}. {brand}"; None: title, category, brand, description."""
    features: dict[str, FeatureType] = {}
    """Item columns -> feature type."""
    released: str | None = None
    """Column of release times."""
    rename: dict[str, str] = {}
    """Our column name -> the name in the file."""


class UserSettings(configs.Config):
    """Table [users]."""

    features: dict[str, FeatureType] = {}
    """User columns -> feature type."""
    rename: dict[str, str] = {}
    """Our column name -> the name in the file."""


class ImpressionSettings(configs.Config):
    """Table [impressions]."""

    labels: tuple[str, ...] = ()
    """Label columns: numbers, for example click."""
    positive: dict[str, Condition] = {}
    """Label -> what counts as yes; it becomes 1 or 0. Others: above 0 is yes."""
    duplicates: Duplicates = None
    """Rows of one request that are equal."""
    context: dict[str, FeatureType] = {}
    """Context columns -> feature type."""
    rename: dict[str, str] = {}
    """Our column name -> the name in the file."""


class DatasetSettings(configs.Config):
    """A whole dataset.toml."""

    name: str | None = None
    """None: the folder's name."""
    repeats: pydantic.StrictBool = True
    """May an item that the user has seen be recommended?."""
    interactions: InteractionSettings = InteractionSettings()
    """Settings of the table of interactions."""
    items: ItemSettings = ItemSettings()
    """Settings of the table of items."""
    users: UserSettings = UserSettings()
    """Settings of the table of users."""
    impressions: ImpressionSettings = ImpressionSettings()
    """Settings of the table of impressions."""


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
    _check_names(settings, where=where)
    if settings.items.text is not None:
        template_columns(settings.items.text, where=f"{where}: [items] text")
    return settings


def _check_names(settings: DatasetSettings, *, where: str) -> None:
    """UserError if a column is declared twice, or under a name that means something else already."""
    log, shown = settings.interactions, settings.impressions
    declared = {
        "interactions": {"labels": [*log.labels], "context": [*log.context]},
        "impressions": {"labels": [*shown.labels], "context": [*shown.context]},
        "items": {"features": [*settings.items.features]},
        "users": {"features": [*settings.users.features]},
    }
    for table, groups in declared.items():
        names = [name for group in groups.values() for name in group]
        for group, members in groups.items():
            place = f"{where}: [{table}] {group}"
            for name in members:
                if name in OWN_COLUMNS[table]:
                    raise UserError(f"{place} names {name!r}, which is read anyway; take it out")
                if names.count(name) > 1:
                    raise UserError(f"{place} names {name!r}, which is declared twice; declare each column once")
                if name.startswith("#") or (group == "context" and name.startswith(FIELD_PREFIXES)):
                    raise UserError(f"{place} names {name!r}, a name that fields have; {_way_out(name, table)}")
    if TEACHER in shown.labels:
        raise UserError(f"{where}: [impressions] labels names {TEACHER!r}; {_way_out(TEACHER, 'impressions')}")
    _check_item_features(settings.items, where=where)
    missing = [name for name in shown.positive if name not in shown.labels]
    if missing:
        raise UserError(f"{where}: [impressions] positive names {missing[0]!r}, which is no label; add it to labels")


def _check_item_features(items: ItemSettings, *, where: str) -> None:
    for name in items.features:
        built_in = BUILT_IN_ITEM_FIELDS if items.released is None else (*BUILT_IN_ITEM_FIELDS, "age")
        stem, _, ending = name.rpartition(".")
        if name in built_in or (ending in ("since", "last") and stem in items.features):
            raise UserError(
                f"{where}: [items] features names {name!r}, which is a field already; {_way_out(name, 'items')}"
            )


def _way_out(name: str, table: str) -> str:
    other = "my_" + name.strip("#").replace(".", "_")
    return f'call the column otherwise, for example [{table}] rename = {{ {other} = "{name}" }}'


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
