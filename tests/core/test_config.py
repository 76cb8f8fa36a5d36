"""Configs: strict, and every mistake names itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextitem.core.config import Config, apply_overrides, merge_tables, parse, read_toml, write_toml
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
def test_mistakes_name_themselves(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(Outer, values, where="file")


def test_overrides_reach_nested_fields_and_read_toml_values() -> None:
    changed = apply_overrides({"a": {"b": 1}, "c": 2}, ["a.b=3", "a.d=[1, 2]", "c=text", "e.f=true"])
    assert changed == {"a": {"b": 3, "d": [1, 2]}, "c": "text", "e": {"f": True}}


@pytest.mark.parametrize("override", ["a", "=3", "c.d=1"])
def test_bad_overrides_are_refused(override: str) -> None:
    with pytest.raises(UserError, match="--set"):
        apply_overrides({"c": 2}, [override])


def test_merge_lays_tables_upon_one_another() -> None:
    assert merge_tables({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}, "d": 4}) == {"a": {"b": 1, "c": 3}, "d": 4}


def test_toml_round_trip_keeps_none(tmp_path: Path) -> None:
    write_toml(tmp_path / "a.toml", {"name": "x", "inner": {"width": 3}, "rate": None})
    assert read_toml(tmp_path / "a.toml") == {"name": "x", "inner": {"width": 3}, "rate": "none"}
    assert parse(Outer, read_toml(tmp_path / "a.toml"), where="a.toml") == Outer(name="x", inner=Inner(width=3))


def test_tables_in_a_list_keep_none_too(tmp_path: Path) -> None:
    config = Outer(name="x", listed=(Rated(words=("none",), rate=None), Rated()))
    write_toml(tmp_path / "a.toml", config.model_dump())
    assert parse(Outer, read_toml(tmp_path / "a.toml"), where="a.toml") == config


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("a = = 1")
    (tmp_path / "b.toml").write_bytes(b"a = '\xff'")
    for name, message in (("a", "line 1"), ("b", "UTF-8"), ("c", "no such file")):
        with pytest.raises(UserError, match=message):
            read_toml(tmp_path / f"{name}.toml")


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(UserError, match=r"no model is called 'sasrex'; there are: popularity, .*sasrec"):
        entry("model", "sasrex")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, table in KINDS.items() for name in table])
def test_every_entry_loads(kind: str, name: str) -> None:
    assert callable(entry(kind, name).load())
