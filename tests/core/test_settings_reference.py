"""The settings of a config as rows: kinds, optional tables, tables by name, lists of tables."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nextitem.core.config import Choice, Config
from nextitem.core.settings_reference import settings_of


class Inner(Config):
    """An inner table."""

    width: int = Field(4, ge=1, le=8)
    """Width of the vectors."""


class Plain(Choice):
    """A kind without settings."""

    kind: Literal["plain"] = "plain"
    """Plain."""


class Sampled(Choice):
    """A kind with a setting."""

    kind: Literal["sampled"] = "sampled"
    """Sampled."""
    count: int | None = None
    """Number of samples."""


class Outer(Config):
    """A config with every kind of field."""

    name: str
    """Name of the thing."""
    loss: Plain | Sampled = Field(Sampled(), discriminator="kind")
    """Loss."""
    extra: Inner | None = None
    """Optional table."""
    parts: dict[str, Inner] = {}
    """Parts by name."""
    rules: tuple[Annotated[Plain | Sampled, Field(discriminator="kind")], ...] = ()
    """Rules in order."""


def test_every_setting_is_one_row() -> None:
    rows = {each.name: (each.type, each.default, each.range, each.meaning) for each in settings_of(Outer)}
    assert rows == {
        "name": ("str", "required", "", "Name of the thing."),
        "loss.kind": ("'plain' | 'sampled'", "'sampled'", "", "Loss."),
        "loss.count": ("int | none", "none", "", "If sampled: Number of samples."),
        "extra": ("table | none", "none", "", "Optional table."),
        "extra.width": ("int", "4", ">= 1, <= 8", "Width of the vectors."),
        "parts": ("tables by name", "none", "", "Parts by name."),
        "parts.NAME.width": ("int", "4", ">= 1, <= 8", "Width of the vectors."),
        "rules": ("list of tables of kind 'plain' | 'sampled'", "()", "", "Rules in order."),
        "rules[].count": ("int | none", "none", "", "If sampled: Number of samples."),
    }
