"""Components: models, tokenizers and re-rankers that are built from a table such as [model] of a recipe.

The name in the table is a name of the registry, or the import path of the user's own class:
"my_package.my_module:MyModel".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nextitem.core import registry
from nextitem.core.catalog import Catalog
from nextitem.core.config import Config, Requirement, parse
from nextitem.core.errors import UserError


def component_class(kind: str, table: Mapping[str, Any], *, where: str | None = None) -> tuple[Any, Config]:
    """Return the class that a table names, and its validated settings.

    Args:
        kind: a kind of the registry: model, tokenizer or reranker.
        table: `name`, and the fields of the Config of the class.
        where: name of the table in error messages; default: [kind].

    Raises:
        UserError: the table has no name, the name is unknown, or a setting is unknown or wrong.

    """
    where = where or f"[{kind}]"
    settings = dict(table)
    name = settings.pop("name", None)
    if name is None:
        raise UserError(f'{where} has no name; write for example name = "{next(iter(registry.KINDS[kind]))}"')
    cls = registry.entry(kind, name).load()
    return cls, parse(cls.Config, settings, where=f"{where} {name}")


def fill_in_settings(kind: str, table: dict[str, Any], *, where: str) -> None:
    """Add every setting of the component to its table, in place, so that a recipe with the table contains all."""
    _, settings = component_class(kind, table, where=where)
    table.update({"name": table["name"], **settings.as_table()})


def needs_of(kind: str, table: Mapping[str, Any], *, where: str) -> frozenset[Requirement]:
    """Return what the component of a table requires of the catalogue."""
    cls, settings = component_class(kind, table, where=where)
    return settings.needs | getattr(cls, "needs", frozenset())


def unused_settings_of(kind: str, table: Mapping[str, Any], *, where: str) -> tuple[str, ...]:
    """Return a sentence for each setting of a table that contains all settings and in which it has no effect.

    A setting counts as set if it is not at its default.
    """
    settings = component_class(kind, table, where=where)[1]
    changed = settings.model_dump(exclude_defaults=True)
    values = {name: getattr(settings, name) for name in type(settings).model_fields}
    sentences = type(settings).model_construct(_fields_set=set(changed), **values).unused_settings()
    return tuple(f"{where} {sentence}" for sentence in sentences)


def build_component(kind: str, table: Mapping[str, Any], catalog: Catalog, *, where: str | None = None) -> Any:
    """Return the component that a table describes, built for a catalogue.

    The arguments are those of `component_class`. Raises UserError as it does, and if settings contradict one another.
    """
    cls, config = component_class(kind, table, where=where)
    try:
        return cls(config, catalog)
    except ValueError as error:
        raise UserError(f"{where or f'[{kind}]'} {table['name']}: {error}") from None
