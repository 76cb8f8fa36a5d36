"""Slices hold the requests that they say."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
from support.fixed_recommender import ask, identified, shop

from nextitem.core.dataset import Dataset
from nextitem.evaluation.slices import slice_masks

# Ten events: item 1 five times, 2 twice, 3, 4 and 5 once; 6..8 never.
TRAIN = shop([[1, 2, 1], [1, 3, 1], [4, 1, 2, 5]], items=8)


def rows(train: Dataset, histories: list[list[int]], targets: list[list[int]]) -> dict[str, list[int]]:
    masks = slice_masks(ask(histories, targets), train, train.catalog)
    return {name: mask.nonzero()[:, 0].tolist() for name, mask in masks.items()}


def test_popularity_and_cold() -> None:
    found = rows(TRAIN, [[1]] * 6, [[1], [2], [5], [6], [8, 1], []])
    assert (found["popular"], found["middle"], found["rare"]) == ([0], [1], [2])
    assert (found["warm"], found["cold"]) == ([0, 1, 2], [3, 4])


def test_memorization_is_a_step_seen_in_training_in_this_direction() -> None:
    found = rows(TRAIN, [[3, 1], [2], [1], [], [2, 1]], [[2], [4], [4], [1], [3]])
    assert found["memorization"] == [0, 4]
    assert found["generalization"] == [1, 2]


def test_steps_do_not_cross_users() -> None:
    found = rows(TRAIN, [[1]], [[1]])  # user 1 ends with item 1 and user 2 begins with it
    assert found["generalization"] == [0]


def test_activity_is_in_thirds_with_the_bounds_of_its_name() -> None:
    lengths = [1, 2, 2, 3, 4, 5, 6, 7, 30]
    found = rows(TRAIN, [[1] * length for length in lengths], [[1]] * 9)
    assert found["history<=2"] == [0, 1, 2]
    assert found["history 3-5"] == [3, 4, 5]
    assert found["history>5"] == [6, 7, 8]


def test_equal_activity_is_one_slice() -> None:
    found = rows(TRAIN, [[1, 2]] * 4, [[1]] * 4)
    assert {name: held for name, held in found.items() if name.startswith("history") and held} == {
        "history<=2": [0, 1, 2, 3]
    }


def test_a_new_category_is_one_that_the_history_lacks() -> None:
    table = TRAIN.catalog.table.with_columns(
        brand=pl.Series(list("xxxxxxxx")), category=pl.Series(["a", "b", "a", "b", None, "c", "a", "b"])
    )
    catalog = replace(TRAIN.catalog, table=table, features={"brand": "categorical", "category": "categorical"})
    found = rows(TRAIN.with_catalog(catalog), [[1, 2], [1], [1], [], [1]], [[7], [2], [5], [1], []])
    assert found["new_category"] == [1, 2, 3]


def test_siblings_share_all_codes_but_the_last() -> None:
    codes = [[0, 0], [0, 1], [1, 0], [2, 0], [2, 1], [2, 2], [2, 3], [2, 4]]
    found = rows(identified(TRAIN, codes, (3, 5)), [[1]] * 3, [[3], [1], [8]])
    assert (found["no siblings"], found["1-3 siblings"], found["4+ siblings"]) == ([0], [1], [2])


def test_no_requests() -> None:
    assert all(not held for held in rows(TRAIN, [], []).values())
