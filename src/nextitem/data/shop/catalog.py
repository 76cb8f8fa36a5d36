"""Generate the items and customers of the simulated shop."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.random import Generator

from nextitem.data.shop.truth import START, YEAR, Bools, Floats, Ints
from nextitem.data.shop.words import (
    BRANDS,
    CATEGORIES,
    COUNTRIES,
    DEPARTMENTS,
    MATERIALS,
    PRICE_BANDS,
    PROJECTS,
    SIZES,
    STYLES,
)

FIRST_ITEM, FIRST_USER = 10_001, 100_001  # first ids; ids differ from row numbers
WIDTH = 16  # width of latent vectors (V)
NEW_SHARE = 0.5  # share of the items that are released during the year
ADVANCE = np.array([0.9, 0.1])  # probability that the next category of a project is 1 or 2 steps ahead
CATEGORY_INDEX = {category.name: index for index, category in enumerate(CATEGORIES)}
CATEGORY_DEPARTMENT = np.array([DEPARTMENTS.index(category.department) for category in CATEGORIES])
PATHS: Ints = np.array([[CATEGORY_INDEX[name] for name in path] for path in PROJECTS])  # [projects, steps]


def make_items(rng: Generator, num_items: int) -> tuple[pl.DataFrame, dict[str, Floats | Ints | Bools]]:
    """Return the items frame, and the fields of ShopTruth that describe items."""
    category = np.sort(rng.permutation(num_items) % len(CATEGORIES))
    department = CATEGORY_DEPARTMENT[category]
    homes = rng.permuted(np.tile(np.arange(len(DEPARTMENTS)), (len(BRANDS), 1)), axis=1)[:, :3]
    homes[:, 0] = np.arange(len(BRANDS)) % len(DEPARTMENTS)  # every department has brands
    brand_style = rng.integers(len(STYLES), size=len(BRANDS))
    brand_tier = rng.normal(size=len(BRANDS))
    brand = _sample_brands(rng, homes, department)
    style = np.where(rng.random(num_items) < 0.6, brand_style[brand], rng.integers(len(STYLES), size=num_items))
    level = 0.8 * brand_tier[brand] + 0.6 * rng.normal(size=num_items)
    released = np.where(
        rng.random(num_items) < NEW_SHARE,
        START + 86_400 + (rng.random(num_items) * (YEAR - 10 * 86_400)).astype(np.int64),
        START - (rng.random(num_items) * YEAR).astype(np.int64),
    )
    is_sold = rng.random((len(BRANDS), len(COUNTRIES))) > 0.15  # brand b is sold in country c
    is_sold[:, 0] = True
    looks = (
        unit_vectors(rng.normal(size=(len(STYLES), WIDTH)))[style]
        + 0.7 * unit_vectors(rng.normal(size=(len(BRANDS), WIDTH)))[brand]
    )
    truth: dict[str, Floats | Ints | Bools] = {
        "category": category,
        "department": department,
        "style": style,
        "brand": brand,
        "vectors": looks + 0.4 * unit_vectors(rng.normal(size=(num_items, WIDTH))),
        "item_price_level": level,
        "popularity": _popularity(rng, category),
        "released": released,
        "consumable": np.array([shelf.consumable for shelf in CATEGORIES])[category],
        "sold_in": is_sold[brand],
        "policy_noise": 0.7 * rng.normal(size=num_items),
    }
    frame = items_frame(rng, category, style, brand, level, released)
    return frame, truth


def _sample_brands(rng: Generator, homes: Ints, department: Ints) -> Ints:
    """Sample a brand for each item [N], among the brands of its department.

    `homes [brands, 3]` are the departments of each brand; `department [N]` those of items.
    """
    brand = np.zeros(len(department), dtype=np.int64)
    for index in range(len(DEPARTMENTS)):
        rows = np.flatnonzero(department == index)
        brand[rows] = rng.choice(np.flatnonzero((homes == index).any(axis=1)), size=len(rows))
    return brand


def _popularity(rng: Generator, category: Ints) -> Floats:
    """Sample the log popularity of items [N]: a power law of the rank within the category."""
    result = np.zeros(len(category))
    for index in range(len(CATEGORIES)):
        rows = np.flatnonzero(category == index)
        result[rows] = -np.log(rng.permutation(len(rows)) + 2.0)
    centred: Floats = result - result.mean()
    return centred


def items_frame(
    rng: Generator,
    category: Ints,
    style: Ints,
    brand: Ints,
    level: Floats,
    released: Ints,
    *,
    first_id: int = FIRST_ITEM,
) -> pl.DataFrame:
    """Return the items frame; titles are composed of random words of the category, the style and the department."""
    styles = list(STYLES.values())
    titles = []
    for row in zip(category, style, brand, rng.integers(2**31, size=(len(category), 5)), strict=True):
        shelf, draws = CATEGORIES[row[0]], row[3]
        materials = MATERIALS[shelf.department]
        names, colours = styles[row[1]]
        parts = [BRANDS[row[2]], names[draws[0] % len(names)]]
        if not shelf.consumable:
            parts.append(materials[draws[1] % len(materials)])
        parts += [shelf.nouns[draws[2] % len(shelf.nouns)], colours[draws[3] % len(colours)]]
        titles.append(" ".join([*parts, SIZES[draws[4] % len(SIZES)]]).strip())
    price = np.round(np.array([shelf.price for shelf in CATEGORIES])[category] * np.exp(0.4 * level), 2)
    band = np.searchsorted([-1.2, -0.4, 0.4, 1.2], level)
    return pl.DataFrame(
        {
            "item_id": np.arange(len(category)) + first_id,
            "title": titles,
            "department": [CATEGORIES[index].department for index in category],
            "category": [CATEGORIES[index].name for index in category],
            "brand": [BRANDS[index] for index in brand],
            "price_band": [PRICE_BANDS[index] for index in band],
            "price": price,
            "released": released,
        }
    )


def make_users(
    rng: Generator, num_users: int, vectors: Floats
) -> tuple[pl.DataFrame, dict[str, Floats | Ints | Bools]]:
    """Return the users frame, and the fields of ShopTruth that describe users; `vectors [N, V]` are those of items."""
    shares = np.array(list(COUNTRIES.values()))
    country = rng.choice(len(COUNTRIES), size=num_users, p=shares / shares.sum())
    department_popularity = 0.8 * rng.normal(size=len(DEPARTMENTS))  # some departments draw more customers than others
    interest = department_popularity + 1.5 * rng.normal(size=(num_users, len(DEPARTMENTS)))
    # Tastes are vectors of existing items, so that there are items for every taste.
    liked_vectors = vectors[rng.integers(len(vectors), size=(2, num_users))]
    favourite = np.zeros_like(interest)
    guess = interest + 1.5 * rng.normal(size=interest.shape)
    favourite[np.arange(num_users), guess.argmax(axis=1)] = 1
    truth: dict[str, Floats | Ints | Bools] = {
        "country": country,
        "country_taste": unit_vectors(rng.normal(size=(len(COUNTRIES), WIDTH))),
        "interest_before": interest,
        "interest_after": 0.5 * (interest + department_popularity) + 1.3 * rng.normal(size=interest.shape),
        "taste_before": 2.0 * liked_vectors[0],
        "taste_after": 2.0 * (0.65 * liked_vectors[0] + 0.35 * liked_vectors[1]),
        "change_time": START + YEAR * rng.uniform(0.1, 0.9, size=num_users),
        "change_span": 86_400 * rng.uniform(3, 30, size=num_users),
        "season": 0.5 * rng.normal(size=(len(DEPARTMENTS), 2)),
        "price_level": rng.normal(size=num_users),
        "price_strictness": rng.uniform(0.4, 1.6, size=num_users),
        "policy_favourite": favourite,
    }
    ids = np.arange(num_users) + FIRST_USER
    names = list(COUNTRIES)
    return pl.DataFrame({"user_id": ids, "country": [names[index] for index in country]}), truth


def complements() -> Floats:
    """Return the probability that a project continues from a category with another one, [C, C].

    It is a mean over all projects and steps. Rows sum to 1, or to 0 if no project continues from the category.
    """
    result = np.zeros((len(CATEGORIES), len(CATEGORIES)))
    for path in PATHS:
        for step in range(len(path) - 1):
            for ahead, share in enumerate(ADVANCE, start=1):
                result[path[step], path[min(step + ahead, len(path) - 1)]] += share
    total = result.sum(axis=1, keepdims=True)
    rows: Floats = np.divide(result, total, out=np.zeros_like(result), where=total > 0)
    return rows


def unit_vectors(vectors: Floats) -> Floats:
    """Return the rows scaled to length 1."""
    result: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return result
