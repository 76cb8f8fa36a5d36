"""Tests of slices: each contains the requests that its name says."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
from support.fixed_recommender import ask, identified, shop

from nextitem.core.dataset import Dataset
from nextitem.evaluation.slices import slice_masks

# Ten events: item 1 five times, 2 twice, 3, 4 and 5 once; 6..8 never.
TRAIN = shop([[1, 2, 1], [1, 3, 1], [4, 1, 2, 5]], items=8)


def slice_rows(train: Dataset, histories: list[list[int]], targets: list[list[int]]) -> dict[str, list[int]]:
    """Return the rows of the requests of each slice."""
    masks = slice_masks(ask(histories, targets), train, train.catalog)
    return {name: mask.nonzero()[:, 0].tolist() for name, mask in masks.items()}


def test_popular_middle_rare_warm_and_cold_targets() -> None:
    slices = slice_rows(TRAIN, [[1]] * 6, [[1], [2], [5], [6], [8, 1], []])
    assert (slices["popular"], slices["middle"], slices["rare"]) == ([0], [1], [2])
    assert (slices["warm"], slices["cold"]) == ([0, 1, 2], [3, 4])


def test_memorization_is_a_step_that_occurs_in_training_in_this_direction() -> None:
    slices = slice_rows(TRAIN, [[3, 1], [2], [1], [], [2, 1]], [[2], [4], [4], [1], [3]])
    assert slices["memorization"] == [0, 4]
    assert slices["generalization"] == [1, 2]


def test_steps_do_not_cross_users() -> None:
    slices = slice_rows(TRAIN, [[1]], [[1]])  # user 1 ends with item 1 and user 2 begins with it
    assert slices["generalization"] == [0]


def test_activity_slices_are_thirds_with_the_bounds_in_their_names() -> None:
    lengths = [1, 2, 2, 3, 4, 5, 6, 7, 30]
    slices = slice_rows(TRAIN, [[1] * length for length in lengths], [[1]] * 9)
    assert slices["history<=2"] == [0, 1, 2]
    assert slices["history 3-5"] == [3, 4, 5]
    assert slices["history>5"] == [6, 7, 8]


def test_histories_of_equal_length_are_one_slice() -> None:
    slices = slice_rows(TRAIN, [[1, 2]] * 4, [[1]] * 4)
    assert {name: row_ids for name, row_ids in slices.items() if name.startswith("history") and row_ids} == {
        "history<=2": [0, 1, 2, 3]
    }


def test_new_category_is_one_that_the_history_lacks() -> None:
    table = TRAIN.catalog.table.with_columns(
        brand=pl.Series(list("xxxxxxxx")), category=pl.Series(["a", "b", "a", "b", None, "c", "a", "b"])
    )
    catalog = replace(TRAIN.catalog, table=table, features={"brand": "categorical", "category": "categorical"})
    slices = slice_rows(TRAIN.with_catalog(catalog), [[1, 2], [1], [1], [], [1]], [[7], [2], [5], [1], []])
    assert slices["new_category"] == [1, 2, 3]


def test_siblings_share_all_codes_but_the_last() -> None:
    codes = [[0, 0], [0, 1], [1, 0], [2, 0], [2, 1], [2, 2], [2, 3], [2, 4]]
    slices = slice_rows(identified(TRAIN, codes, (3, 5)), [[1]] * 3, [[3], [1], [8]])
    assert (slices["no siblings"], slices["1-3 siblings"], slices["4+ siblings"]) == ([0], [1], [2])


def test_slices_of_no_requests_are_empty() -> None:
    assert all(not row_ids for row_ids in slice_rows(TRAIN, [], []).values())
