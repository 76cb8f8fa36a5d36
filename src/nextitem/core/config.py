"""Strict typed configs <-> TOML, with dotted overrides."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import pydantic
import tomli_w
from pydantic.fields import FieldInfo

from nextitem.core.errors import UserError

Requirement = Literal["content", "identifiers"]  # what a model may need a catalogue to carry


class Config(pydantic.BaseModel):
    """Base of every config: frozen; an unknown field or a wrong type is an error that names it."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    @pydantic.model_validator(mode="before")
    @classmethod
    def _name_the_kinds(cls, values: Any) -> Any:
        """Let a setting with kinds be a kind alone, "gbce", or a table without one, which is of the default kind."""
        if not isinstance(values, Mapping):
            return values
        with_kinds = {
            name: _with_kind(values[name], default=field.default)
            for name, field in cls.model_fields.items()
            if field.discriminator and name in values
        }
        return {**values, **with_kinds}

    @property
    def needs(self) -> frozenset[Requirement]:
        """What these settings need the catalogue to carry, beside what the class itself needs."""
        return frozenset()

    def unused_settings(self) -> tuple[str, ...]:
        """Return a sentence for each field that was set and has no effect beside the other settings.

        Set is what the values that the config was made from name. So call this on the config that was parsed from the
        user's own table: a resolved recipe names every field. Of a table within, a field counts as set if it is not at
        its default.
        """
        sentences = _idle_sentences(self, self.model_fields_set)
        for name in type(self).model_fields:
            part = getattr(self, name)
            if isinstance(part, Config) and name in self.model_fields_set:
                changed = part.model_dump(exclude_defaults=True).keys()
                sentences += [f"{name}.{sentence}" for sentence in _idle_sentences(part, changed)]
        return tuple(sentences)

    def idle_fields(self) -> Mapping[str, str]:
        """Return the fields that nothing reads while the other settings are as they are, each with the reason."""
        return {}


class Choice(Config):
    """One kind of a setting that has several, with the settings that count under this kind alone.

    A field chooses by `objective: FullSoftmax | SampledSoftmax = Field(SampledSoftmax(), discriminator="kind")`, and
    each class declares `kind` as the literal of its name. Users write {kind = "gbce", num_negatives = 256}, or "gbce".
    """

    kind: str
    """Name of the kind."""


def choices_of(field: FieldInfo) -> dict[str, type[Choice]]:
    """Return the classes that a field chooses from, by kind; empty if it is no such field."""
    if not field.discriminator:
        return {}
    classes = [each for each in get_args(field.annotation) if isinstance(each, type) and issubclass(each, Choice)]
    return {each.model_fields["kind"].default: each for each in classes}


def _with_kind(value: Any, *, default: Any) -> Any:
    if isinstance(value, str):
        return {"kind": value}
    if isinstance(value, Mapping) and "kind" not in value and isinstance(default, Choice):
        return {"kind": default.kind, **value}
    return value


ConfigType = TypeVar("ConfigType", bound=Config)


def _idle_sentences(config: Config, names: Set[str]) -> list[str]:
    """Return a sentence for each of the fields `names` that is idle, in the order of the config."""
    idle = config.idle_fields()
    return [
        f"{name} = {getattr(config, name)!r} has no effect: {idle[name]}"
        for name in type(config).model_fields
        if name in names and name in idle
    ]


def idle_unless(is_used: bool, reason: str, *names: str) -> dict[str, str]:
    """Return `names` as idle fields, each with the same reason; nothing if they are used."""
    return {} if is_used else dict.fromkeys(names, reason)


def parse(kind: type[ConfigType], values: Mapping[str, Any], *, where: str) -> ConfigType:
    """Builds a config from plain values; UserError names field, value and what was expected.

    `where` says what the values came from: a file, a table, an option. The text "none" counts as None.
    """
    try:
        return kind.model_validate(_from_toml_values(values))
    except pydantic.ValidationError as error:
        raise UserError(f"{where}: " + "; ".join(_explain(kind, entry) for entry in error.errors())) from None


def _explain(kind: type[Config], entry: Mapping[str, Any]) -> str:
    path, owner = _place(kind, entry["loc"])
    if entry["type"] == "extra_forbidden":
        of_kind = f" of kind {owner.model_fields['kind'].default!r}" if issubclass(owner, Choice) else ""
        return f"unknown setting {path!r}{of_kind}; known are {', '.join(owner.model_fields)}"
    if entry["type"] == "union_tag_invalid":
        tags = entry["ctx"]["expected_tags"].replace("'", "")
        return f"{path}.kind = {entry['ctx']['tag']!r}: choose one of {tags}"
    if entry["type"] == "missing":
        return f"setting {path!r} is missing"
    if not path:  # a rule on several settings, which says itself what is wrong
        return str(entry["msg"]).removeprefix("Value error, ")
    return f"{path} = {entry['input']!r}: {entry['msg'][0].lower()}{entry['msg'][1:]}"


def _place(kind: type[Config], loc: Sequence[str | int]) -> tuple[str, type[Config]]:
    """Return the dotted path of an error, and the config class that has its last part as a field."""
    names: list[str] = []
    owner: type[Config] = kind
    below: type[Config] | None = None
    choices: dict[str, type[Choice]] = {}
    for part in loc:
        if part in choices:  # pydantic names the kind between a field and the fields of that kind
            below = choices[str(part)]
            choices = {}
            continue
        if below is not None:
            owner, below = below, None
        names.append(str(part))
        field = owner.model_fields.get(str(part))
        if field is not None:
            choices = choices_of(field)
            nested = field.annotation
            below = nested if isinstance(nested, type) and issubclass(nested, Config) else None
    return ".".join(names), owner


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; UserError names file and line of a mistake."""
    try:
        # utf-8-sig: editors of Windows begin a file with a byte-order mark.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); put a readable file there") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None


def write_toml(path: Path, values: Mapping[str, Any]) -> None:
    """Writes tables as TOML; settings that are None stand as "none"."""
    path.write_text(tomli_w.dumps(to_toml_values(values)), encoding="utf-8")


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Applies `a.b=c` settings to nested tables; c is read as TOML, else as text.

    An override that changes the `kind` of a table drops what the table held for the former kind, and comes before the
    others. Returns a new dict; UserError if an override has no `=`, or walks through a value.
    """
    result = _copy(values)
    for override in sorted(overrides, key=lambda each: not each.partition("=")[0].strip().endswith(".kind")):
        path, separator, text = override.partition("=")
        if not separator or not path.strip():
            raise UserError(f"--set {override!r}: write it as name.field=value, for example training.max_epochs=5")
        *parents, last = path.strip().split(".")
        table = result
        for parent in parents:
            below = _as_table(table.get(parent))
            if below is None:
                raise UserError(f"--set {override!r}: {parent!r} is a value, not a table")
            table[parent] = table = below
        value = _value(text.strip())
        if last == "kind" and table.get("kind") != value:
            table.clear()
        table[last] = value
    return result


def merge_tables(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `over` into `base`, recursively; return a new dict. A table of another kind replaces the former."""
    result = _copy(base)
    for key, value in over.items():
        below = _as_table(result.get(key)) if isinstance(value, Mapping) else None
        is_same_kind = below is not None and value.get("kind", below.get("kind")) == below.get("kind")
        result[key] = merge_tables(below, value) if below is not None and is_same_kind else value
    return result


def _as_table(value: Any) -> dict[str, Any] | None:
    """Return a setting as a table that others may be written into: a text names a kind; None if it is another value."""
    if isinstance(value, dict):
        return value
    if value is None or value == "none":
        return {}
    return {"kind": value} if isinstance(value, str) else None


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def to_toml_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables as TOML can hold them: None, which TOML lacks, as "none"."""
    return {key: _swapped(value, None, "none") for key, value in values.items()}


def _from_toml_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _swapped(value, "none", None) for key, value in values.items()}


def _swapped(value: Any, old: Any, new: Any) -> Any:
    """`value` with `new` for every `old`, in tables of any depth, and in those that a list holds."""
    if isinstance(value, Mapping):
        return {key: _swapped(part, old, new) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_swapped(part, old, new) if isinstance(part, Mapping) else part for part in value]
    return new if value == old else value
