"""Search space of a tuning: the settings that are varied, and the values that each of them may take.

By default it is derived from the configs of the model and of training: around the present value, within the limits
that the fields declare. Importing this file does not import torch, so mistakes in `--space` are reported immediately.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from nextitem.core.config import Choice, Config, choices_of, parse
from nextitem.core.errors import UserError

AROUND = 10.0  # a positive number is varied between its default / 10 and its default * 10
MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of a whole number, which are tried
FEW = 8  # a whole number below this is only halved and doubled
LONG = 4  # the numbers of a tuple of more than this are varied only if they are named
OPEN_END = 0.05  # an end that a share must not reach is moved inwards by this part of its range
DIGITS = 4  # significant digits of a number that is tried
# Fields that are not varied by default, whatever the model, and why.
FIXED_FIELDS = {
    "teacher": "it has an effect in one of the two stages that have it",
    "index": "an approximate index trades figures for speed",
    "beam_width": "more beams cost time, and seldom lower the figure",
    "candidates": "more candidates cost time, and seldom lower the figure",
    "reranked_from": "more candidates cost time, and seldom lower the figure",
    "recent_events": "more events cost time, and seldom lower the figure",
    "targets_per_epoch": "it is the length of an epoch",
    "window_step": "it decides what a stored state costs, not what an answer is worth",
    "table": "what memory a table of vectors may take is for the owner to choose",
    "buckets": "a size of the data",
    "pair_buckets": "a size of the data",
    "user_buckets": "a size of the data",
    "num_actions": "a size of the data",
    "actions": "columns to read are for the owner of the data to choose",
    "learn_from": "what is learned from is for the owner of the data to choose",
    "position": "what a slot means is for the owner of the data to choose",
    "calibration": "it changes probabilities, not the order of items",
    "new_items": "the place of new items is for the owner of the catalogue to choose",
    "quota": "the place of new items, and the length of a channel, are for the owner to choose",
    "sessions": "what a session is, and which are good, is for the owner of the data to choose",
    "top_k": "more experts that a token passes cost time",
    "kv_layers": "more keys and values of the context cost time",
    "guide": "the training of each trial chooses its weight on validation requests",
}


@dataclass(frozen=True)
class Choices:
    """Values that are listed one by one."""

    values: tuple[Any, ...]

    @property
    def is_ordered(self) -> bool:
        """Whether all values are numbers, so that neighbours are alike."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)

    def contains(self, value: Any) -> bool:
        """Return whether a value is one of the list."""
        return any(_is_equal(value, each) for each in self.values)

    def place_of(self, value: Any) -> int:
        """Return the place of a value in the list, from 0."""
        return next(place for place, each in enumerate(self.values) if _is_equal(value, each))

    def __str__(self) -> str:
        return ", ".join(str(value).lower() if isinstance(value, bool) else str(value) for value in self.values)


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`, on a linear or logarithmic scale."""

    low: float
    high: float
    is_log: bool = False
    is_integer: bool = False

    def contains(self, value: Any) -> bool:
        """Return whether a value is a number of the range."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}{':log' if self.is_log else ''}"


Values = Choices | Range


@dataclass(frozen=True)
class Dimension:
    """One setting that is varied.

    Attributes:
        name: dotted name: "model.width", "model.objective.kind", "model.walk.lag_weights.0".
        values: the values that are tried.
        kinds: kinds of a table that contains the setting, under which the setting exists; empty: it always exists.
        kind_name: dotted name of the setting that chooses the kind: "model.walk.kind"; empty without kinds.
        is_default: whether it is varied if the user names no settings; False for a number of a long tuple.

    """

    name: str
    values: Values
    kinds: tuple[str, ...] = ()
    kind_name: str = ""
    is_default: bool = True

    @property
    def key(self) -> str:
        """Name that distinguishes settings of one name under different kinds."""
        return f"{self.name} ({' | '.join(self.kinds)})" if self.kinds else self.name


@dataclass(frozen=True)
class SearchSpace:
    """The settings that are varied, and the default of every setting.

    Attributes:
        dimensions: the settings that are varied.
        tables: a resolved recipe, as nested tables: the defaults.
        config: config class of the model.

    """

    dimensions: tuple[Dimension, ...]
    tables: Mapping[str, Any]
    config: type[Config]

    def select(self, choose: Callable[[Dimension, Any], Any]) -> dict[str, Any]:
        """Return a value for each setting that has an effect: dotted name -> value.

        Kinds are chosen first, then other choices, then numbers. A setting is skipped if its kind was not chosen, or if
        it is idle under the others (`Config.idle_fields`).

        Args:
            choose: returns the value of a dimension; its second argument is the default ("none" if there is none).

        """
        values: dict[str, Any] = {}
        for dimension in sorted(self.dimensions, key=_order):
            tables = self.with_values(values)
            if self.has_effect(dimension, tables):
                default = value_at(tables, dimension.name)
                values[dimension.name] = choose(dimension, "none" if default is None else default)
        # A setting may be idle because of one that was chosen after it.
        idle = self.idle(self.with_values(values))
        return {name: value for name, value in values.items() if not is_below(name, idle)}

    def default(self) -> dict[str, Any]:
        """Return the default of each setting that is varied and has an effect, if it is among the values tried."""
        outside_names = set()

        def choose(dimension: Dimension, default: Any) -> Any:
            if not dimension.values.contains(default):
                outside_names.add(dimension.name)
            return default

        return {name: value for name, value in self.select(choose).items() if name not in outside_names}

    def with_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tables of the recipe with other values of settings; the order of the values is of no effect.

        Another kind of a table of the model has its own defaults.
        """
        table_names = {name.partition(".")[0] for name in values}
        tables = {name: _copy(table) if name in table_names else table for name, table in self.tables.items()}
        for name in sorted(values, key=lambda name: not name.endswith(".kind")):
            value = values[name]
            choices = find_choices(self.config, name)[1] if name.endswith(".kind") else {}
            choice = choices.get(value) if isinstance(value, str) else None
            _set_value(tables, name, value, {} if choice is None else choice(kind=value).model_dump())
        return tables

    def has_effect(self, dimension: Dimension, tables: Mapping[str, Any]) -> bool:
        """Return whether a setting exists under the kinds of the tables, and is not idle."""
        if dimension.kinds and value_at(tables, dimension.kind_name) not in dimension.kinds:
            return False
        return not is_below(dimension.name, self.idle(tables))

    def idle(self, tables: Mapping[str, Any]) -> set[str]:
        """Return the dotted names of the idle settings of the model; none if the settings contradict one another."""
        settings = {name: value for name, value in tables["model"].items() if name != "name"}
        try:
            config = parse(self.config, settings, where="model")
        except UserError:
            return set()  # the trial will fail, or a later value resolves it
        return set(_idle_names(config, "model"))


def derive_space(config: Config, *, prefix: str) -> Iterator[Dimension]:
    """Yield the dimensions of a config, around its values.

    * Kinds, texts of a fixed set, and switches: every value; None is tried if a fixed set has it as an alternative.
    * A share, that is a number with a lower and an upper limit: the range between them.
    * Another positive number: from a tenth to ten times its value, on a logarithmic scale. 0 has no scale.
    * A whole number: its value times 1/4, 1/2, 1, 2 and 4, within its limits; below FEW, times 1/2, 1 and 2.
    * A tuple of numbers that are not whole: each of them; if there are more than LONG, only if they are named.

    Nothing else is varied: lists of whole numbers, names, tables, and fields whose value is None; nor are the fields in
    FIXED_FIELDS.

    Args:
        config: the settings.
        prefix: dotted name of their table, such as "model".

    """
    for name, field in type(config).model_fields.items():
        value, path = getattr(config, name), f"{prefix}.{name}"
        if name in FIXED_FIELDS:
            continue
        kinds = choices_of(field)
        if kinds:
            yield Dimension(f"{path}.kind", Choices(tuple(kinds)))
            for kind, choice in kinds.items():
                settings = value if isinstance(value, choice) else choice(kind=kind)
                for dimension in derive_space(settings, prefix=path):
                    if dimension.name != f"{path}.kind":
                        yield replace(dimension, kinds=(kind,), kind_name=f"{path}.kind")
        elif isinstance(value, Config):
            yield from derive_space(value, prefix=path)
        elif isinstance(value, tuple) and value and all(isinstance(part, float) for part in value):
            for index, part in enumerate(value):
                numbers = _numbers_around(part, None, None)
                if numbers is not None:
                    yield Dimension(f"{path}.{index}", numbers, is_default=len(value) <= LONG)
        else:
            values = _values_around(field, value)
            if values is not None:
                yield Dimension(path, values)


def find_choices(config: type[Config], name: str) -> tuple[str, dict[str, type[Choice]]]:
    """Return the table with several kinds that contains a setting of [model], or is it, and the classes of its kinds.

    Args:
        config: config class of the model.
        name: dotted name: "model.walk", "model.walk.kind" and "model.walk.lag_weights.0" are all found at "model.walk".

    Returns:
        The dotted name of the table, and its classes by kind; an empty name and dict if there is none.

    """
    path, *parts = name.split(".")
    nested: type[Config] | None = config if path == "model" else None
    for part in parts:
        field = None if nested is None else nested.model_fields.get(part)
        if field is None:
            break
        path = f"{path}.{part}"
        choices = choices_of(field)
        if choices:
            return path, choices
        members = [field.annotation, *get_args(field.annotation)]
        nested = next((each for each in members if isinstance(each, type) and issubclass(each, Config)), None)
    return "", {}


def value_at(tables: Mapping[str, Any], name: str) -> Any:
    """Return the value of a setting by its dotted name; None if there is none."""
    value: Any = tables
    for part in name.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list | tuple) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def round_to_digits(value: float, values: Range) -> float:
    """Return a number of a range with DIGITS significant digits."""
    if values.is_integer:
        return round(value)
    return min(max(float(f"{value:.{DIGITS}g}"), values.low), values.high)


def _is_equal(value: Any, other: Any) -> bool:
    """Return whether two values of settings are equal; 1 and True are not, lists and tuples may be."""
    if isinstance(value, list | tuple) and isinstance(other, list | tuple):
        return len(value) == len(other) and all(_is_equal(*pair) for pair in zip(value, other, strict=True))
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


def _order(dimension: Dimension) -> int:
    """Return the place of a dimension in the order of choosing."""
    if dimension.name.endswith(".kind"):
        return 0
    return 2 if isinstance(dimension.values, Range) or dimension.values.is_ordered else 1


def _idle_names(config: Config, prefix: str) -> Iterator[str]:
    """Yield the dotted names of the idle fields of a config and of the configs in it."""
    for name in config.idle_fields():
        yield f"{prefix}.{name}"
    for name in type(config).model_fields:
        nested = getattr(config, name)
        if isinstance(nested, Config):
            yield from _idle_names(nested, f"{prefix}.{name}")


def is_below(name: str, names: set[str]) -> bool:
    """Return whether a dotted name is one of `names`, or is inside the table of one of them."""
    return any(name == each or name.startswith(f"{each}.") for each in names)


def _values_around(field: FieldInfo, value: Any) -> Values | None:
    """Return the values that are tried for a field with this value; None if it is not varied."""
    if value is None:
        return None
    if isinstance(value, bool):
        return Choices((False, True))
    if isinstance(value, str):
        members = [field.annotation, *get_args(field.annotation)]
        literal = next((member for member in members if get_origin(member) is Literal), None)
        texts = () if literal is None else get_args(literal)
        choices = Choices((*texts, *(("none",) if type(None) in members else ())))
        return choices if len(choices.values) > 1 else None
    low, high = _limit(field, "ge", "gt"), _limit(field, "le", "lt")
    if isinstance(value, int):
        numbers = {round(value * multiple) for multiple in (MULTIPLES if value >= FEW else MULTIPLES[1:4])}
        allowed = sorted(number for number in numbers if _is_inside(field, number))
        return Choices(tuple(allowed)) if len(allowed) > 1 and value > 0 else None
    if isinstance(value, float):
        if low is not None and high is not None:
            margin = OPEN_END * (high - low)
            low += margin * (_limit(field, "gt") is not None)
            high -= margin * (_limit(field, "lt") is not None)
            return Range(min(low, value), max(high, value))
        return _numbers_around(value, low, high)
    return None


def _numbers_around(value: float, low: float | None, high: float | None) -> Range | None:
    """Return the numbers from a tenth to ten times a positive value, within limits; None for other values."""
    if value <= 0:
        return None
    lowest = max(value / AROUND, low or 0.0)
    highest = value * AROUND if high is None else min(value * AROUND, high)
    return Range(float(f"{lowest:.{DIGITS}g}"), float(f"{highest:.{DIGITS}g}"), is_log=True)


def _limit(field: FieldInfo, *names: str) -> float | None:
    """Return the first limit of these names (ge, gt, le, lt) that a field declares; None without one."""
    limits = [getattr(entry, name, None) for entry in field.metadata for name in names]
    return next((float(limit) for limit in limits if limit is not None), None)


def _is_inside(field: FieldInfo, number: int) -> bool:
    """Return whether a whole number is within the limits of a field."""
    at_least, above, at_most, below = (_limit(field, name) for name in ("ge", "gt", "le", "lt"))
    return (
        (at_least is None or number >= at_least)
        and (above is None or number > above)
        and (at_most is None or number <= at_most)
        and (below is None or number < below)
    )


def _set_value(tables: dict[str, Any], name: str, value: Any, defaults: Mapping[str, Any]) -> None:
    """Set a setting of nested tables, in place; another kind replaces the settings of the former kind by `defaults`."""
    *parents, last = name.split(".")
    table: Any = tables
    for index, part in enumerate(parents):
        if isinstance(table.get(part), tuple | list):  # one element of a tuple
            assert index == len(parents) - 1
            table[part] = [value if str(place) == last else each for place, each in enumerate(table[part])]
            return
        if table.get(part) is None:
            table[part] = {}
        table = table[part]
    if last == "kind" and table.get("kind") != value:
        table.clear()
        table.update(defaults)
    table[last] = value


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}
