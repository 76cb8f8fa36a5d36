"""Kinds of rules as settings: filters, pins, caps, gaps, quotas, freshness."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nextitem.core import config as configs


class Filter(configs.Config):
    """Rule that keeps only items with one of the values, or drops those items."""

    kind: Literal["keep", "drop"]
    """Rule that keeps only the items with one of the values ("keep") or drops them ("drop")."""
    column: str
    """Categorical or categorical-list feature of the items."""
    values: tuple[str | int, ...]
    """Values in the column; an item matches if it has one of them."""


class Pin(configs.Config):
    """Rule that puts an item into a slot of every list for which it is a candidate."""

    kind: Literal["pin"]
    """Rule that puts an item into a slot."""
    item: str | int
    """Id of the item, as in the data."""
    slot: int = Field(ge=1)
    """Slot of the item in the list, from 1."""


class Cap(configs.Config):
    """Rule that limits the number of items with the same value."""

    kind: Literal["cap"]
    """Rule that limits how many items share a value."""
    column: str
    """Categorical feature of the items."""
    most: int = Field(ge=1)
    """Largest number of items with the same value."""
    window: int | None = Field(None, ge=2)
    """Number of neighbouring slots within which the limit holds; none: the whole list."""


class Gap(configs.Config):
    """Rule that keeps items with the same value apart."""

    kind: Literal["gap"]
    """Rule that keeps items with the same value apart."""
    column: str
    """Categorical feature of the items."""
    between: int = Field(ge=1)
    """Least number of other items between two items with the same value."""


class Quota(configs.Config):
    """Rule that requires a number of items with a value on the list."""

    kind: Literal["quota"]
    """Rule that requires a number of items with a value."""
    column: str
    """Categorical or categorical-list feature of the items."""
    value: str | int
    """Value that the items must have."""
    least: int = Field(ge=1)
    """Least number of items with the value."""


class Fresh(configs.Config):
    """Rule that requires a number of new items on the list."""

    kind: Literal["fresh"]
    """Rule that requires a number of new items."""
    days: float = Field(gt=0)
    """Largest age of a new item, in days since its release."""
    least: int = Field(ge=1)
    """Least number of new items."""


Rule = Annotated[Filter | Pin | Cap | Gap | Quota | Fresh, Field(discriminator="kind")]
