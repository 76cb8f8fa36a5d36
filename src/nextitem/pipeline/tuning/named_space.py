"""Search space that a user names (`--space`), together with what is derived from the defaults.

Importing this file does not import torch, so mistakes in `--space` are reported immediately.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nextitem.core.config import Config, read_toml
from nextitem.core.errors import UserError
from nextitem.pipeline.tuning.space import (
    Choices,
    Dimension,
    Range,
    SearchSpace,
    Values,
    derive_space,
    find_choices,
    is_below,
    value_at,
)

# Tables of a recipe whose settings can be varied.
TABLES = ("model", "training", "stages", "content", "content_training", "tokenizer", "tokenizer_training")
TRAINING_FIELDS = ("learning_rate", "weight_decay", "batch_size")  # of [training], which are varied by default

_RANGE = re.compile(r"\s*([^\s,:]+?)\s*\.\.\s*([^\s,:]+?)\s*(:\s*log)?\s*")


def build_space(
    tables: Mapping[str, Any],
    config: Config,
    *,
    training: Config | None,
    texts: Sequence[str] | Mapping[str, Any] = (),
    fixed_names: Sequence[str] = (),
) -> SearchSpace:
    """Return the search space of a recipe.

    Args:
        tables: the resolved recipe, as nested tables: the defaults.
        config: the settings of the model in it.
        training: the settings of training in it; None for a model that does not learn by gradient.
        texts: what the user varies, as in `parse_space`; empty: everything that can be derived.
        fixed_names: dotted names of settings that the user has set: they are not varied, unless `texts` name them. The
            name of a table that has kinds stands for its kind.

    Raises:
        UserError: there is nothing to vary, or a setting cannot be varied.

    """
    derivable = [*derive_space(config, prefix="model")]
    if training is not None:
        derivable += [
            each
            for each in derive_space(training, prefix="training")
            if each.name.removeprefix("training.") in TRAINING_FIELDS
        ]
    user_values = parse_space(texts)
    names = {each.name for each in derivable}
    fixed = {f"{name}.kind" if f"{name}.kind" in names else name for name in fixed_names}
    dimensions = {
        each.key: each
        for each in ([] if user_values else derivable)
        if each.is_default and not is_below(each.name, fixed)
    }
    for name, values in sorted(user_values.items(), key=lambda item: item[1] is not None):  # named values last
        _check_name(name, has_training=training is not None)
        if values is None:
            below_name = [each for each in derivable if is_below(each.name, {name})]
            if not below_name:
                raise UserError(f"--space {name}: no values can be derived from its default; write {name}=VALUES")
            dimensions |= {
                each.key: each
                for each in below_name
                if (each.name not in user_values or each.name == name)
                and (each.is_default or name in (each.name, each.name.rpartition(".")[0]))
            }
        else:
            dimension = _named_dimension(name, values, tables, config)
            dimensions[dimension.key] = dimension
    for key, dimension in list(dimensions.items()):
        kind = dimensions.get(dimension.kind_name)
        varied = kind.values.values if kind is not None and isinstance(kind.values, Choices) else ()
        kinds = varied or (value_at(tables, dimension.kind_name),)
        if not dimension.kinds or any(each in dimension.kinds for each in kinds):
            continue
        if user_values.get(dimension.name) is not None:
            raise UserError(
                f"--space {dimension.name}: {dimension.kind_name} is {' or '.join(map(repr, kinds))}, and the setting "
                f"belongs to {' or '.join(dimension.kinds)}; vary {dimension.kind_name}, too"
            )
        del dimensions[key]
    if not dimensions:
        raise UserError(f"{tables['model']['name']} has no setting whose values can be derived; name some with --space")
    return SearchSpace(tuple(dimensions.values()), tables, type(config))


def parse_space(texts: Sequence[str] | Mapping[str, Any]) -> dict[str, Values | None]:
    """Return the values that a user names for settings: dotted name -> values, None for derived ones.

    Args:
        texts: texts such as "model.width=32,64", "training.learning_rate=1e-4..1e-2:log", "model.width" (values
            derived from its default), "model" (all settings of a table, derived), "space.toml" (a file of tables); or a
            mapping {"model.width": [32, 64], "training.learning_rate": "1e-4..1e-2:log"}, or nested tables like it.

    Raises:
        UserError: no values, an empty range, or a file that cannot be read.

    """
    if isinstance(texts, Mapping):
        return {name: _parse_entry(name, value, where="space") for name, value in flattened(texts)}
    result: dict[str, Values | None] = {}
    for text in texts:
        name, separator, values = text.partition("=")
        if not separator and name.strip().endswith(".toml"):
            tables = flattened(read_toml(Path(name.strip())))
            result |= {key: _parse_entry(key, value, where=name.strip()) for key, value in tables}
        else:
            result[name.strip()] = _parse_entry(name.strip(), values, where="--space") if separator else None
    return result


def _check_name(name: str, *, has_training: bool) -> None:
    """Raise UserError if a dotted name is no setting that can be varied; its table's fields are checked later."""
    table = name.partition(".")[0]
    if table not in TABLES:
        raise UserError(f"--space {name}: only settings of these tables can be varied: {', '.join(TABLES)}")
    if table == "training" and not has_training:
        raise UserError(f"--space {name} has no effect: the model does not learn by gradient from [training]")


def _named_dimension(name: str, values: Values, tables: Mapping[str, Any], config: Config) -> Dimension:
    """Return the dimension of a setting that the user names, under the kinds that have it."""
    table, choices = find_choices(type(config), name)
    if name == table:
        return Dimension(f"{name}.kind", values)
    kinds: tuple[str, ...] = ()
    default = value_at(tables, name)
    if choices and name != f"{table}.kind":
        present, below_table = value_at(tables, table), name.removeprefix(f"{table}.")
        settings = {
            kind: present if kind == present["kind"] else choice(kind=kind).model_dump()
            for kind, choice in choices.items()
        }
        kinds = tuple(kind for kind, each in settings.items() if _has_setting(each, below_table))
        if not kinds:
            raise UserError(f"--space {name}: none of {', '.join(choices)} has such a setting")
        default = value_at(settings[present["kind"] if present["kind"] in kinds else kinds[0]], below_table)
        kinds = () if len(kinds) == len(choices) else kinds  # it always exists
    elif not _has_setting(tables, name):
        raise UserError(f"--space {name}: no such setting, or no such number of a tuple; the first one is number 0")
    if isinstance(values, Range) and isinstance(default, float):
        values = replace(values, is_integer=False)
    return Dimension(name, values, kinds, f"{table}.kind" if kinds else "")


def _has_setting(tables: Mapping[str, Any], name: str) -> bool:
    """Return whether tables may have a setting: its first part is there, and no value or tuple is in the way."""
    first, *others = name.split(".")
    value = tables.get(first)
    for part in others:
        if isinstance(value, list | tuple):
            if not part.isdigit() or int(part) >= len(value):
                return False
            value = value[int(part)]
        elif value is None or isinstance(value, Mapping):
            value = None if value is None else value.get(part)
        else:
            return False
    return first in tables


def flattened(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the entries of nested tables by their dotted names."""
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _parse_entry(name: str, value: Any, *, where: str) -> Values:
    """Return the values of one setting, from a list or from a text. Raises UserError if there is nothing to vary."""
    place = f"{where} {name}"
    match = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if match is not None:
        return _parse_range(match, place=f"{place}={value}")
    values = list(value) if isinstance(value, list | tuple) else _parse_list(str(value))
    distinct = [each for index, each in enumerate(values) if not Choices(tuple(values[:index])).contains(each)]
    if len(distinct) < 2:
        count = "no values" if not distinct else "one value only, so nothing is varied (--set fixes a setting)"
        raise UserError(f"{place}: {count}; write values, {name}=32,64,128, or a range, {name}=1e-4..1e-2:log")
    choices = Choices(tuple(distinct))
    return Choices(tuple(sorted(choices.values))) if choices.is_ordered else choices


def _parse_range(match: re.Match[str], *, place: str) -> Range:
    """Return the range of a text such as 1e-4..1e-2:log; whole ends make a range of whole numbers."""
    try:
        low, high = (float(match[group]) for group in (1, 2))
    except ValueError:
        raise UserError(f"{place}: the ends of a range are numbers, such as 1e-4..1e-2:log") from None
    is_log = match[3] is not None
    if not low < high < float("inf") or low == float("-inf"):
        raise UserError(f"{place}: the range is empty or infinite; write the smaller end first, such as 0.1..4")
    if is_log and low <= 0:
        raise UserError(f"{place}: a logarithmic range begins above 0; begin it at a small positive number")
    is_integer = all(re.fullmatch(r"[+-]?\d+", match[group]) for group in (1, 2))
    return Range(low, high, is_log=is_log, is_integer=is_integer)


def _parse_list(text: str) -> list[Any]:
    """Return the values of a text such as 32,64 or [100],[100,50] or bce,gbce."""
    try:
        values: list[Any] = tomllib.loads(f"values = [{text}]")["values"]
    except tomllib.TOMLDecodeError:
        return [_parse_list(part)[0] if _is_toml(part) else part.strip() for part in text.split(",") if part.strip()]
    return values


def _is_toml(text: str) -> bool:
    """Return whether a text is a value of TOML, such as a number; a bare word is none."""
    try:
        return bool(tomllib.loads(f"values = [{text}]")["values"])
    except tomllib.TOMLDecodeError:
        return False
