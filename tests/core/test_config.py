"""Strict configs: typed fields, kinds, overrides, TOML, and errors that name the setting."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from nextitem.core.config import Choice, Config, apply_overrides, merge_tables, parse, read_toml, write_toml
from nextitem.core.errors import UserError
from nextitem.core.registry import KINDS, entry


class Inner(Config):
    width: int = 4


class Rated(Config):
    words: tuple[str, ...] = ()
    rate: float | None = 1.0


class Outer(Config):
    name: str
    inner: Inner = Inner()
    rate: float | None = None
    listed: tuple[Rated, ...] = ()


class Plain(Choice):
    kind: Literal["plain"] = "plain"


class Sampled(Choice):
    kind: Literal["sampled"] = "sampled"
    count: int = 3
    inner: Inner = Inner()


class WithTables(Config):
    extra: Inner | None = None
    parts: dict[str, Inner] = {}


class WithChoice(Config):
    loss: Plain | Sampled = Field(Sampled(), discriminator="kind")


def test_values_become_typed_fields() -> None:
    config = parse(Outer, {"name": "a", "inner": {"width": 8}}, where="test")
    assert (config.inner.width, config.rate) == (8, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a", "width": 3}, r"file: unknown setting 'width'; known are name, inner, rate, listed"),
        ({"name": "a", "inner": {"width": "wide"}}, r"inner\.width = 'wide'"),
        ({}, r"setting 'name' is missing"),
    ],
)
def test_errors_name_the_setting(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(Outer, values, where="file")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain", Plain()),
        ("sampled", Sampled()),
        ({"count": 5}, Sampled(count=5)),
        ({"kind": "sampled", "count": 5}, Sampled(count=5)),
        ({"kind": "plain"}, Plain()),
    ],
)
def test_a_choice_may_be_written_as_a_kind_or_as_a_table(value: object, expected: Choice) -> None:
    assert parse(WithChoice, {"loss": value}, where="test").loss == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("odd", r"test: loss\.kind = 'odd': choose one of plain, sampled"),
        ({"kind": "plain", "count": 5}, r"unknown setting 'loss\.count' of kind 'plain'; known are kind"),
        ({"counts": 5}, r"unknown setting 'loss\.counts' of kind 'sampled'; known are kind, count, inner"),
        ({"count": "many"}, r"loss\.count = 'many'"),
        ({"inner": {"depth": 1}}, r"unknown setting 'loss\.inner\.depth'; known are width"),
    ],
)
def test_errors_in_a_choice_name_the_setting_and_its_kind(value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(WithChoice, {"loss": value}, where="test")


@pytest.mark.parametrize("overrides", [["loss.kind=plain"], ["loss=plain"]])
def test_another_kind_removes_the_settings_of_the_former_kind(overrides: list[str]) -> None:
    base = {"loss": {"kind": "sampled", "count": 5}}
    assert parse(WithChoice, apply_overrides(base, overrides), where="test").loss == Plain()
    assert merge_tables(base, {"loss": {"kind": "plain"}}) == {"loss": {"kind": "plain"}}
    assert merge_tables(base, {"loss": {"count": 1}}) == {"loss": {"kind": "sampled", "count": 1}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"extra": {"depth": 1}}, r"unknown setting 'extra\.depth'; known are width"),
        ({"parts": {"near": {"depth": 1}}}, r"unknown setting 'parts\.near\.depth'; known are width"),
    ],
)
def test_mistakes_in_tables_list_the_settings_of_the_table(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(WithTables, values, where="test")


def test_the_order_of_overrides_of_a_choice_does_not_matter() -> None:
    base = {"loss": "plain"}
    for kind in ("loss.kind=sampled", "loss=sampled"):
        for overrides in (["loss.count=4", kind], [kind, "loss.count=4"]):
            assert parse(WithChoice, apply_overrides(base, overrides), where="test").loss == Sampled(count=4)


def test_an_override_turns_a_setting_that_is_none_into_a_table() -> None:
    assert apply_overrides({"loss": "none"}, ["loss.count=4"]) == {"loss": {"count": 4}}


def test_overrides_reach_nested_fields_and_read_toml_values() -> None:
    changed = apply_overrides({"a": {"b": 1}, "c": 2}, ["a.b=3", "a.d=[1, 2]", "c=text", "e.f=true"])
    assert changed == {"a": {"b": 3, "d": [1, 2]}, "c": "text", "e": {"f": True}}


@pytest.mark.parametrize("override", ["a", "=3", "c.d=1"])
def test_bad_overrides_are_refused(override: str) -> None:
    with pytest.raises(UserError, match="--set"):
        apply_overrides({"c": 2}, [override])


def test_merge_combines_nested_tables_and_the_second_wins() -> None:
    assert merge_tables({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}, "d": 4}) == {"a": {"b": 1, "c": 3}, "d": 4}


def test_a_toml_round_trip_preserves_none(tmp_path: Path) -> None:
    write_toml(tmp_path / "a.toml", {"name": "x", "inner": {"width": 3}, "rate": None})
    assert read_toml(tmp_path / "a.toml") == {"name": "x", "inner": {"width": 3}, "rate": "none"}
    assert parse(Outer, read_toml(tmp_path / "a.toml"), where="a.toml") == Outer(name="x", inner=Inner(width=3))


def test_a_toml_round_trip_preserves_none_in_tables_of_a_list(tmp_path: Path) -> None:
    config = Outer(name="x", listed=(Rated(words=("none",), rate=None), Rated()))
    write_toml(tmp_path / "a.toml", config.model_dump())
    assert parse(Outer, read_toml(tmp_path / "a.toml"), where="a.toml") == config


def test_errors_of_a_broken_file_say_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("a = = 1")
    (tmp_path / "b.toml").write_bytes(b"a = '\xff'")
    for name, message in (("a", "line 1"), ("b", "UTF-8"), ("c", "no such file")):
        with pytest.raises(UserError, match=message):
            read_toml(tmp_path / f"{name}.toml")


def test_the_error_of_an_unknown_name_lists_the_registered_names() -> None:
    with pytest.raises(UserError, match=r"no model is called 'sasrex'; there are: popularity, .*sasrec"):
        entry("model", "sasrex")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, table in KINDS.items() for name in table])
def test_every_registry_entry_loads(kind: str, name: str) -> None:
    assert callable(entry(kind, name).load())
