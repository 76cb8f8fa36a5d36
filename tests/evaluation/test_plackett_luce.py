"""Probabilities of sampled lists: those of slots over all lists, against enumeration and in extreme cases."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from nextitem.evaluation.plackett_luce import plackett_luce, slot_probabilities


@pytest.mark.parametrize("weights", [[5, 1, 0.3, 2, 0.01], [1, 1, 1, 1, 1], [1e6, 1, 1, 1e-6, 3]])
def test_slots_equal_the_sum_over_all_lists(weights: list[float]) -> None:
    lists = np.array(list(permutations(range(5), 3)))
    given_above, _ = plackett_luce(np.broadcast_to(np.log(weights), (len(lists), 5)), lists)
    expected = np.zeros((3, 5))
    for slot in range(3):
        np.add.at(expected[slot], lists[:, slot], given_above.prod(1))
    actual = slot_probabilities(np.array([weights, weights]), 3)
    np.testing.assert_allclose(actual[0], expected, atol=1e-11)
    np.testing.assert_allclose(actual[1], expected, atol=1e-11)


def test_long_lists_of_many_items_sum_to_one() -> None:
    weights = np.arange(1.0, 101.0) ** -1.5
    result = slot_probabilities(weights[None], 20)[0]
    np.testing.assert_allclose(result.sum(1), 1, atol=1e-11)
    assert (result.sum(0) <= 1 + 1e-12).all()
    np.testing.assert_allclose(result[0], weights / weights.sum(), atol=1e-11)


def test_items_without_weight_have_no_slot_and_short_lists_end() -> None:
    result = slot_probabilities(np.array([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), 3)
    expected = np.array([[2 / 3, 0, 1 / 3], [1 / 3, 0, 2 / 3], [0, 0, 0]])
    np.testing.assert_allclose(result[0], expected, atol=1e-11)
    assert not result[1].any()
