"""Reference of the settings of a config: name, type, default, range and meaning of each field.

The meaning is the string below the field in the source, so that each setting is documented in one place only.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from nextitem.core.config import Choice, Config, choices_of

_BOUNDS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"), ("min_length", "length >="))


@dataclass(frozen=True)
class Setting:
    """Documentation of one field of a config; `name` is dotted for a field of a nested config."""

    name: str
    type: str
    default: str
    range: str
    meaning: str


def settings_of(config: type[Config], *, prefix: str = "") -> Iterator[Setting]:
    """Yield every setting of a config class, in the order of its fields; nested configs field by field.

    A field with several kinds yields its kind, and then the settings of each kind.
    """
    meanings = _meanings_of_all(config)
    for name, field in config.model_fields.items():
        nested = field.annotation
        choices = choices_of(field)
        if choices:
            kinds, default = " | ".join(repr(kind) for kind in choices), field.default
            default_text = repr(default.kind) if isinstance(default, Choice) else _default_text(field)
            yield Setting(f"{prefix}{name}.kind", kinds, default_text, "", meanings.get(name, ""))
            for kind, choice in choices.items():
                for setting in settings_of(choice, prefix=f"{prefix}{name}."):
                    if setting.name != f"{prefix}{name}.kind":
                        yield replace(setting, meaning=f"If {kind}: {setting.meaning}")
            continue
        listed = _choices_in_list(nested)
        if listed:
            kinds = " | ".join(repr(kind) for kind in listed)
            yield Setting(f"{prefix}{name}", f"list of tables of kind {kinds}", "()", "", meanings.get(name, ""))
            for member in dict.fromkeys(listed.values()):
                named = " or ".join(kind for kind, cls in listed.items() if cls is member)
                for each in settings_of(member, prefix=f"{prefix}{name}[]."):
                    if each.name != f"{prefix}{name}[].kind":
                        yield replace(each, meaning=f"If {named}: {each.meaning}")
            continue
        if get_origin(nested) is dict and _is_config(get_args(nested)[1]):
            default_text = "required" if field.is_required() else "none"
            yield Setting(prefix + name, "tables by name", default_text, _range_text(field), meanings.get(name, ""))
            yield from settings_of(get_args(nested)[1], prefix=f"{prefix}{name}.NAME.")
            continue
        optional = _optional_config(nested)
        if optional is not None:
            default_text = "none" if field.default is None else "a table"
            yield Setting(prefix + name, "table | none", default_text, "", meanings.get(name, ""))
            yield from settings_of(optional, prefix=f"{prefix}{name}.")
            continue
        if _is_config(nested):
            assert isinstance(nested, type)
            yield from settings_of(nested, prefix=f"{prefix}{name}.")
            continue
        yield Setting(
            prefix + name, _type_text(nested), _default_text(field), _range_text(field), meanings.get(name, "")
        )


def _optional_config(annotation: Any) -> type[Config] | None:
    """Return the config class of a table that may be none; None if the annotation is another one."""
    members = [each for each in get_args(annotation) if each is not type(None)]
    if len(members) != 1 or len(get_args(annotation)) != 2:
        return None
    return members[0] if _is_config(members[0]) else None


def _is_config(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Config)


def _choices_in_list(annotation: Any) -> dict[str, type[Config]]:
    """Return the classes by kind that a list has as its members; empty if it is no such list."""
    member = next((each for each in get_args(annotation) if get_origin(each) is Annotated), None)
    if member is None:
        return {}
    classes = [each for each in get_args(get_args(member)[0]) if isinstance(each, type) and issubclass(each, Config)]
    return {kind: each for each in classes for kind in get_args(each.model_fields["kind"].annotation)}


def _meanings_of_all(config: type[Config]) -> dict[str, str]:
    meanings: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        if issubclass(cls, Config) and cls is not Config:
            meanings |= _meanings(cls)
    return meanings


@cache
def _meanings(config: type[Config]) -> dict[str, str]:
    """Return the documentation of the fields that the class itself declares, by field."""
    try:
        source = textwrap.dedent(inspect.getsource(config))
    except OSError:
        return {}
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    meanings = {}
    for field, documentation in pairwise(body.body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(documentation, ast.Expr) and isinstance(documentation.value, ast.Constant):
            meanings[field.target.id] = " ".join(str(documentation.value.value).split())
    return meanings


def _type_text(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " | ".join(repr(choice) for choice in get_args(annotation))
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation.__name__
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        names = [_type_text(argument) for argument in arguments if argument is not type(None)]
        return " | ".join([*names, *["none"] * (type(None) in arguments)])
    inner = ", ".join("..." if argument is Ellipsis else _type_text(argument) for argument in arguments)
    return f"{getattr(origin, '__name__', str(annotation))}[{inner}]" if arguments else str(annotation)


def _default_text(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "required"
    return "none" if default is None else repr(default)


def _range_text(field: FieldInfo) -> str:
    bounds = [f"{sign} {value}" for name, sign in _BOUNDS for value in _bounds_of(field, name)]
    return ", ".join(bounds)


def _bounds_of(field: FieldInfo, name: str) -> list[Any]:
    values = [getattr(entry, name) for entry in field.metadata if getattr(entry, name, None) is not None]
    return [f"{value:g}" if isinstance(value, float) else value for value in values]
