"""Settings of a data set in dataset.toml: the meaning of its tables and columns."""

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
Condition = Scalar | tuple[Scalar, ...]  # ">= 4", or the accepted value or values (data/conditions.py)
Duplicates = Literal["keep", "drop"] | None  # for rows that equal an earlier row; None: keep them, and add a note

# Columns that are always read under these names, so settings cannot give them another meaning.
OWN_COLUMNS = {
    "interactions": ("user_id", "session_id", "item_id", "timestamp", "position", "action", "split"),
    "impressions": ("impression_id", "user_id", "item_id", "timestamp", "slot", "propensity"),
    "items": ("item_id",),
    "users": ("user_id",),
}
# Fields of rankers that exist for all data (nn/fields/fields.py): item.id, item.popularity, item.trend.
BUILT_IN_ITEM_FIELDS = ("id", "popularity", "trend")
FIELD_PREFIXES = ("request.", "item.", "user.", "history.", "events.", "cross.", "candidate.")
TEACHER = "teacher"  # name of the label that a cascade adds: scores of its ranker


class InteractionSettings(configs.Config):
    """Table [interactions] of dataset.toml."""

    positive_actions: tuple[str, ...] | None = None
    """Actions whose events may be targets; None: every action."""
    positive: dict[str, Condition] | None = None
    """Column -> accepted values, or a comparison (">= 4"), of events that may be targets; None: all, with a note."""
    duplicates: Duplicates = None
    """Keep or drop events that equal an earlier one in every column that is read; None: keep them, with a note."""
    labels: tuple[str, ...] = ()
    """Label columns, which contain numbers, for example like or rating."""
    context: dict[str, FeatureType] = {}
    """Context columns -> feature types."""
    rename: dict[str, str] = {}
    """Standard names of columns -> their names in the file."""


class ItemSettings(configs.Config):
    """Table [items] of dataset.toml."""

    text: str | None = None
    """Template of the content sentence, such as "{title}. {brand}"; None: title, category, brand and description."""
    features: dict[str, FeatureType] = {}
    """Columns of items that are features -> their feature types."""
    released: str | None = None
    """Column of release times; None: there is none."""
    rename: dict[str, str] = {}
    """Standard names of columns -> their names in the file."""


class UserSettings(configs.Config):
    """Table [users] of dataset.toml."""

    features: dict[str, FeatureType] = {}
    """Columns of users that are features -> their feature types."""
    rename: dict[str, str] = {}
    """Standard names of columns -> their names in the file."""


class ImpressionSettings(configs.Config):
    """Table [impressions] of dataset.toml."""

    labels: tuple[str, ...] = ()
    """Label columns, which contain numbers, for example click."""
    positive: dict[str, Condition] = {}
    """Label -> values that count as yes; it becomes 1 or 0. Of other labels, numbers above 0 count as yes."""
    duplicates: Duplicates = None
    """Keep or drop rows of one request that are equal in every column that is read; None: keep them, with a note."""
    context: dict[str, FeatureType] = {}
    """Context columns -> feature types."""
    rename: dict[str, str] = {}
    """Standard names of columns -> their names in the file."""


class DatasetSettings(configs.Config):
    """Settings of a data set: the contents of dataset.toml."""

    name: str | None = None
    """Name of the data set; None: the name of its folder."""
    repeats: pydantic.StrictBool = True
    """Items that the user has seen may be recommended."""
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
    """Return the settings of a dataset.toml, or the defaults if there is no such file."""
    return parse_settings(configs.read_toml(path) if path.exists() else {}, where=str(path))


def parse_settings(values: Mapping[str, Any], *, where: str) -> DatasetSettings:
    """Check settings strictly, and return them; UserError names the table, the key and the allowed keys."""
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
    """Raise UserError if a column is declared twice, or under a name that has another meaning already."""
    log, impressions = settings.interactions, settings.impressions
    declared = {
        "interactions": {"labels": [*log.labels], "context": [*log.context]},
        "impressions": {"labels": [*impressions.labels], "context": [*impressions.context]},
        "items": {"features": [*settings.items.features]},
        "users": {"features": [*settings.users.features]},
    }
    for table, groups in declared.items():
        names = [name for group in groups.values() for name in group]
        for group, members in groups.items():
            place = f"{where}: [{table}] {group}"
            for name in members:
                if name in OWN_COLUMNS[table]:
                    raise UserError(f"{place} names {name!r}, which is always read; remove it from there")
                if names.count(name) > 1:
                    raise UserError(f"{place} names {name!r}, which is declared twice; declare each column once")
                if name.startswith("#") or (group == "context" and name.startswith(FIELD_PREFIXES)):
                    raise UserError(
                        f"{place} names {name!r}, a name that fields of rankers have; {_rename_hint(name, table)}"
                    )
    if TEACHER in impressions.labels:
        raise UserError(f"{where}: [impressions] labels names {TEACHER!r}; {_rename_hint(TEACHER, 'impressions')}")
    _check_item_features(settings.items, where=where)
    missing = [name for name in impressions.positive if name not in impressions.labels]
    if missing:
        raise UserError(f"{where}: [impressions] positive names {missing[0]!r}, which is no label; add it to labels")


def _check_item_features(items: ItemSettings, *, where: str) -> None:
    """Raise UserError if an item feature has the name of a field that rankers build themselves."""
    for name in items.features:
        built_in = BUILT_IN_ITEM_FIELDS if items.released is None else (*BUILT_IN_ITEM_FIELDS, "age")
        stem, _, ending = name.rpartition(".")
        if name in built_in or (ending in ("since", "last") and stem in items.features):
            raise UserError(
                f"{where}: [items] features names {name!r}, which is a field already; {_rename_hint(name, 'items')}"
            )


def _rename_hint(name: str, table: str) -> str:
    """Return the way out of a message on a column whose name has another meaning."""
    other = "my_" + name.strip("#").replace(".", "_")
    return f'call the column otherwise, for example [{table}] rename = {{ {other} = "{name}" }}'


def template_columns(template: str, *, where: str) -> list[tuple[str, str | None]]:
    """Return the parts of a text template: (literal text, the column that follows it or None)."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"{where} = {template!r}: {error}; write columns as {{title}}") from None
    for _, column, form, conversion in parts:
        if column == "" or form or conversion:
            raise UserError(f"{where} = {template!r}: write columns as {{title}}, with nothing but the name")
    return [(literal, column) for literal, column, _, _ in parts]
