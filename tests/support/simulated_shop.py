"""A small simulated shop for tests, made once."""

from __future__ import annotations

from functools import cache

from nextitem.data.shop.shop import Shop, generate_shop


@cache
def small_shop() -> Shop:
    """Return a shop of 150 items and 200 customers."""
    return generate_shop(3, num_items=150, num_users=200)
