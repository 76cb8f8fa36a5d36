"""Strict typed configs: read from TOML, written to TOML, changed by dotted overrides."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import pydantic
import tomli_w
from pydantic.fields import FieldInfo

from nextitem.core.errors import UserError

Requirement = Literal["content", "identifiers"]  # optional parts of a catalogue that a model can require


class Config(pydantic.BaseModel):
    """Base class of every config: frozen; an unknown field or a wrong type raises an error that names the field."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    @pydantic.model_validator(mode="before")
    @classmethod
    def _add_kinds(cls, values: Any) -> Any:
        """Add the missing `kind` to settings that have several kinds.

        A text such as "gbce" is the name of the kind; a table without a kind has the default kind.
        """
        if not isinstance(values, Mapping):
            return values
        values_with_kind = {
            name: _with_kind(values[name], default=field.default)
            for name, field in cls.model_fields.items()
            if field.discriminator and name in values
        }
        return {**values, **values_with_kind}

    @property
    def needs(self) -> frozenset[Requirement]:
        """Parts of the catalogue that these settings require, in addition to those that the class requires."""
        return frozenset()

    def as_table(self) -> dict[str, Any]:
        """Return the settings as nested tables as a recipe has them: sequences are lists, not tuples."""
        table: dict[str, Any] = _as_lists(self.model_dump())
        return table

    def unused_settings(self) -> tuple[str, ...]:
        """Return a sentence for each field that was set but has no effect with the other settings.

        A field counts as set if the values that the config was parsed from name it. So call this on a config that was
        parsed from the user's own table: a resolved recipe names every field. A field of a nested config counts as set
        if it differs from its default.
        """
        sentences = _idle_sentences(self, self.model_fields_set)
        for name in type(self).model_fields:
            nested = getattr(self, name)
            if isinstance(nested, Config) and name in self.model_fields_set:
                changed_names = nested.model_dump(exclude_defaults=True).keys()
                sentences += [f"{name}.{sentence}" for sentence in _idle_sentences(nested, changed_names)]
        return tuple(sentences)

    def idle_fields(self) -> Mapping[str, str]:
        """Return the fields that are unused with the current values of the other fields: name -> reason."""
        return {}


class Choice(Config):
    """One kind of a setting that has several kinds, with the settings that apply to this kind only.

    A field declares its kinds by `objective: FullSoftmax | SampledSoftmax = Field(SampledSoftmax(),
    discriminator="kind")`, and each class declares `kind` as the literal of its name. Users write
    {kind = "gbce", num_negatives = 256}, or "gbce".
    """

    kind: str
    """Name of the kind."""


def choices_of(field: FieldInfo) -> dict[str, type[Choice]]:
    """Return the classes of a field with several kinds, by kind; an empty dict for another field."""
    if not field.discriminator:
        return {}
    classes = [
        choice for choice in get_args(field.annotation) if isinstance(choice, type) and issubclass(choice, Choice)
    ]
    return {choice.model_fields["kind"].default: choice for choice in classes}


def _with_kind(value: Any, *, default: Any) -> Any:
    """Return the value of a setting with several kinds as a table with `kind`; other values are returned unchanged."""
    if isinstance(value, str):
        return {"kind": value}
    if isinstance(value, Mapping) and "kind" not in value and isinstance(default, Choice):
        return {"kind": default.kind, **value}
    return value


ConfigType = TypeVar("ConfigType", bound=Config)


def _idle_sentences(config: Config, names: Set[str]) -> list[str]:
    """Return a sentence for each idle field among `names`, in the order of the config."""
    idle = config.idle_fields()
    return [
        f"{name} = {getattr(config, name)!r} has no effect: {idle[name]}"
        for name in type(config).model_fields
        if name in names and name in idle
    ]


def idle_unless(is_used: bool, reason: str, *names: str) -> dict[str, str]:
    """Return the fields `names` as idle, all with the same reason; an empty dict if they are used."""
    return {} if is_used else dict.fromkeys(names, reason)


def parse(kind: type[ConfigType], values: Mapping[str, Any], *, where: str) -> ConfigType:
    """Return a config of class `kind` with the given values; the text "none" counts as None.

    Args:
        kind: the config class.
        values: field -> value, with nested mappings for nested configs.
        where: source of the values, for error messages: a file, a table, an option.

    Raises:
        UserError: a setting is unknown, missing or wrong; it names field, value and the expected type.

    """
    try:
        return kind.model_validate(_from_toml_values(values))
    except pydantic.ValidationError as error:
        raise UserError(f"{where}: " + "; ".join(_explain(kind, entry) for entry in error.errors())) from None


def _explain(kind: type[Config], entry: Mapping[str, Any]) -> str:
    """Return the message for one of pydantic's errors about a config of class `kind`."""
    path, owner = _path_and_class(kind, entry["loc"])
    if entry["type"] == "extra_forbidden":
        kind_text = f" of kind {owner.model_fields['kind'].default!r}" if issubclass(owner, Choice) else ""
        return f"unknown setting {path!r}{kind_text}; known are {', '.join(owner.model_fields)}"
    if entry["type"] == "union_tag_invalid":
        tags = entry["ctx"]["expected_tags"].replace("'", "")
        return f"{path}.kind = {entry['ctx']['tag']!r}: choose one of {tags}"
    if entry["type"] == "missing":
        return f"setting {path!r} is missing"
    message = str(entry["msg"]).removeprefix("Value error, ")
    if not path:  # a rule about several settings: its message is complete
        return message
    return f"{path} = {entry['input']!r}: {message[0].lower()}{message[1:]}"


def _path_and_class(kind: type[Config], location: Sequence[str | int]) -> tuple[str, type[Config]]:
    """Return the dotted path of an error, and the config class that the last part of the path is a field of."""
    names: list[str] = []
    owner: type[Config] = kind
    nested: type[Config] | None = None
    choices: dict[str, type[Choice]] = {}
    for part in location:
        if part in choices:  # pydantic inserts the kind between a field and the fields of that kind
            nested = choices[str(part)]
            choices = {}
            continue
        if nested is not None:
            owner, nested = nested, None
        names.append(str(part))
        field = owner.model_fields.get(str(part))
        if field is not None:
            choices = choices_of(field)
            # The config itself, an optional one, or the values of a dict.
            members = [field.annotation, *get_args(field.annotation)]
            configs = [each for each in members if isinstance(each, type) and issubclass(each, Config)]
            nested = configs[0] if len(configs) == 1 and not choices else None
    return ".".join(names), owner


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file; UserError names the file and the line of a mistake."""
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
    """Write tables to a TOML file; a setting that is None is written as "none"."""
    path.write_text(tomli_w.dumps(to_toml_values(values)), encoding="utf-8")


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return nested tables with overrides such as "a.b=c" applied; c is read as TOML, or else as text.

    An override that changes the `kind` of a table removes the settings of the former kind from the table; it is applied
    before the other overrides. `values` is not changed. Raises UserError if an override has no `=`, or if a part of its
    path is a value instead of a table.
    """
    result = _copy(values)
    paths = [override.partition("=")[0].strip() for override in overrides]

    def order(override: str) -> bool:
        """Return False (sorted first) if it chooses a kind: `a.kind=x`, or `a=x` if there is `a.b=y`."""
        path = override.partition("=")[0].strip()
        return not (path.endswith(".kind") or any(other.startswith(f"{path}.") for other in paths))

    for override in sorted(overrides, key=order):
        path, separator, text = override.partition("=")
        if not separator or not path.strip():
            raise UserError(f"--set {override!r}: write it as name.field=value, for example training.max_epochs=5")
        *parents, field = path.strip().split(".")
        table = result
        for parent in parents:
            nested = _as_table(table.get(parent))
            if nested is None:
                raise UserError(f"--set {override!r}: {parent!r} is a value, not a table")
            table[parent] = table = nested
        value = _parse_value(text.strip())
        if field == "kind" and table.get("kind") != value:
            table.clear()
        table[field] = value
    return result


def merge_tables(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `over` into `base`, recursively, and return a new dict; a table of another kind replaces the former one."""
    result = _copy(base)
    for key, value in over.items():
        nested = _as_table(result.get(key)) if isinstance(value, Mapping) else None
        is_same_kind = nested is not None and value.get("kind", nested.get("kind")) == nested.get("kind")
        result[key] = merge_tables(nested, value) if nested is not None and is_same_kind else value
    return result


def _as_table(value: Any) -> dict[str, Any] | None:
    """Return a setting as a table with room for further settings, or None if it cannot be one.

    A text is the kind of the table; None and "none" become an empty table.
    """
    if isinstance(value, dict):
        return value
    if value is None or value == "none":
        return {}
    return {"kind": value} if isinstance(value, str) else None


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def to_toml_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested tables that TOML can store: None, which TOML lacks, becomes "none"."""
    return {key: _replace_value(value, None, "none") for key, value in values.items()}


def _from_toml_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _replace_value(value, "none", None) for key, value in values.items()}


def _as_lists(value: Any) -> Any:
    """Return nested tables and sequences with every sequence as a list."""
    if isinstance(value, Mapping):
        return {key: _as_lists(part) for key, part in value.items()}
    return [_as_lists(part) for part in value] if isinstance(value, list | tuple) else value


def _replace_value(value: Any, old: Any, new: Any) -> Any:
    """Return `value` with `new` in place of every `old`, in tables of any depth and in the tables of a list."""
    if isinstance(value, Mapping):
        return {key: _replace_value(part, old, new) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_value(part, old, new) if isinstance(part, Mapping) else part for part in value]
    return new if value == old else value
