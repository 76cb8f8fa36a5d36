"""Changes of the shop while customers visit: items that arrive, and tastes and popularity that drift.

Shapes: N items, U users, D departments.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
from numpy.random import Generator

from nextitem.data.shop.catalog import FIRST_ITEM, items_frame, unit_vectors
from nextitem.data.shop.shop import Shop
from nextitem.data.shop.truth import Floats, ShopTruth

PRICE_SPREAD = 0.3  # standard deviation of the price level of an item around that of the item it resembles
LOOK_SPREAD = 0.4  # length of the part of a look that an item shares with no other, as in the shop
TASTE_LENGTH, INTEREST_SPREAD, TREND_SPREAD = 2.0, 1.5, 0.8  # of new tastes and interests, as in the shop
LAST_CHANGE = 0.8  # share of the period in which the middle of each customer's change lies
CHANGE_SPAN = 0.05  # share of the period that a change takes


def with_arrivals(shop: Shop, rng: Generator, *, count: int, start: float, end: float) -> Shop:
    """Return the shop with further items, which are released one after the other.

    Each resembles an item of the shop: category, brand, style and countries are the same, look and price are near. It
    is as popular as another item of the shop.

    Args:
        shop: the shop.
        rng: source of chance.
        count: number of new items.
        start: begin of the period of their releases, in seconds since 1970.
        end: end of the period.

    """
    truth, num_items = shop.truth, len(shop.truth.category)
    parents, idols = rng.integers(num_items, size=(2, count))
    released = np.sort((start + rng.random(count) * (end - start)).astype(np.int64))
    level = truth.item_price_level[parents] + PRICE_SPREAD * rng.normal(size=count)
    noise = LOOK_SPREAD * unit_vectors(rng.normal(size=(count, truth.vectors.shape[1])))
    columns = {name: getattr(truth, name)[parents] for name in ("category", "style", "brand")}
    category, style, brand = columns.values()
    frame = items_frame(rng, category, style, brand, level, released, first_id=FIRST_ITEM + num_items)
    added = {
        **columns,
        "department": truth.department[parents],
        "vectors": truth.vectors[parents] + noise,
        "item_price_level": level,
        "popularity": truth.popularity[idols],
        "released": released,
        "consumable": truth.consumable[parents],
        "sold_in": truth.sold_in[parents],
        "policy_noise": truth.policy_noise[idols],
    }
    longer = {name: np.concatenate([getattr(truth, name), values]) for name, values in added.items()}
    return replace(shop, items=pl.concat([shop.items, frame]), truth=replace(truth, **longer))


def with_drift(truth: ShopTruth, rng: Generator, *, share: float, start: float, end: float) -> ShopTruth:
    """Return a truth in which each customer changes once in a period, from the present interests and tastes to others.

    Some departments become more interesting to all.

    Args:
        truth: the truth of the shop.
        rng: source of chance.
        share: weight of the new interests and tastes after the change; the present ones have the rest.
        start: begin of the period, in seconds since 1970.
        end: end of the period.

    """
    num_items, (num_users, num_departments) = len(truth.category), truth.interest_after.shape
    progress = truth.change_progress(np.arange(num_users), start)[:, None]
    interest = (1 - progress) * truth.interest_before + progress * truth.interest_after
    taste = (1 - progress) * truth.taste_before + progress * truth.taste_after
    trend = TREND_SPREAD * rng.normal(size=num_departments)
    new_interest = trend + INTEREST_SPREAD * rng.normal(size=interest.shape)
    new_taste = TASTE_LENGTH * truth.vectors[rng.integers(num_items, size=num_users)]
    change_time: Floats = start + LAST_CHANGE * (end - start) * rng.random((num_users,))
    return replace(
        truth,
        interest_before=interest,
        interest_after=(1 - share) * interest + share * new_interest,
        taste_before=taste,
        taste_after=(1 - share) * taste + share * new_taste,
        change_time=change_time,
        change_span=np.full(num_users, CHANGE_SPAN * (end - start)),
    )


def later_popularity(truth: ShopTruth, rng: Generator, *, share: float) -> Floats:
    """Return the popularity of the items after a change of fashion, [N].

    Items of a category exchange their popularity, with the weight `share`.
    """
    later = truth.popularity.copy()
    for category in range(int(truth.category.max()) + 1):
        rows = np.flatnonzero(truth.category == category)
        later[rows] = truth.popularity[rng.permutation(rows)]
    result: Floats = (1 - share) * truth.popularity + share * later
    return result
