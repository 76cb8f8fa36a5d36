"""What a customer does with a whole list: exact figures against enumeration, and against the shop without effects."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from support.simulated_shop import small_shop

from nextitem.data.shop.list_truth import (
    NO_EFFECTS,
    ListEffects,
    any_click_probability,
    click_probabilities,
    click_table,
    expected_clicks,
    expected_purchases,
    same_above,
    sample_clicks,
)
from nextitem.data.shop.truth import EXAMINATION, START, YEAR, Floats, Ints

USERS = np.arange(30)
TIMES = START + YEAR + USERS * 3600
EFFECTS = ListEffects()


def lists(size: int = 5) -> tuple[Ints, Ints]:
    """Return lists of different items with pairs of one category and of complements, and last items, some none."""
    truth, rng = small_shop().truth, np.random.default_rng(0)
    items = np.stack([rng.choice(len(truth.category), size, replace=False) for _ in USERS])
    for row in items[::2]:  # a complement of the first item, and an item of its category
        following = np.flatnonzero(truth.complementarity(row[0], np.arange(len(truth.category))) > 0)
        row[2] = next((item for item in following if item not in row), row[2])
        same = np.flatnonzero(truth.category == truth.category[row[0]])
        row[3] = next((item for item in same if item not in row), row[3])
    return items, np.where(rng.random(len(USERS)) < 0.3, -1, rng.integers(len(truth.category), size=len(USERS)))


def enumerated(user: int, items: Ints, time: int, last: int, effects: ListEffects) -> tuple[Floats, float]:
    """Return the click probabilities of a list, and that of any click, as a sum over all courses of events."""
    truth = small_shop().truth
    clicks, no_click = np.zeros(len(items)), 0.0
    for course in product((0, 1, 2), repeat=len(items)):  # each slot is not looked at, or looked at, or clicked
        probability, last_item = 1.0, last
        for slot, step in enumerate(course):
            look = effects.examination[slot]
            chance = float(truth.click_probability(user, items[slot], time, slots=1, last_items=last_item))
            above = sum(truth.category[item] == truth.category[items[slot]] for item in items[:slot])
            logit = np.log(chance / (1 - chance)) - effects.fatigue * above
            chance = 1 / (1 + np.exp(-logit))
            probability *= (1 - look, look * (1 - chance), look * chance)[step]
            if step == 2 and effects.complements:
                last_item = int(items[slot])
        clicks += probability * np.equal(course, 2)
        no_click += probability * (2 not in course)
    return clicks, 1 - no_click


@pytest.mark.parametrize("effects", [EFFECTS, ListEffects(complements=False, fatigue=1.2), ListEffects(fatigue=0)])
def test_expected_clicks_are_the_sum_over_all_courses(effects: ListEffects) -> None:
    items, last = lists(4)
    clicks = expected_clicks(small_shop().truth, USERS, items, TIMES, last_items=last, effects=effects)
    table = click_table(small_shop().truth, USERS, items, TIMES, last_items=last, effects=effects)
    any_click = any_click_probability(table, effects.examination)
    for row in range(2):
        expected, expected_any = enumerated(row, items[row], int(TIMES[row]), int(last[row]), effects)
        assert clicks[row] == pytest.approx(expected, abs=1e-12)
        assert any_click[row] == pytest.approx(expected_any, abs=1e-12)


def test_without_effects_a_list_is_its_slots() -> None:
    items, last = lists()
    truth = small_shop().truth
    wide: dict[str, Any] = {"slots": np.arange(1, 6), "last_items": last[:, None]}
    expected = truth.click_probability(USERS[:, None], items, TIMES[:, None], **wide)
    clicks = expected_clicks(truth, USERS, items, TIMES, last_items=last, effects=NO_EFFECTS)
    assert clicks == pytest.approx(expected, rel=1e-12)
    purchases = expected_purchases(truth, USERS, items, TIMES, last_items=last, effects=NO_EFFECTS)
    assert purchases == pytest.approx(
        expected * truth.purchase_probability(USERS[:, None], items, TIMES[:, None]), rel=1e-12
    )


def test_a_complement_gains_below_and_an_item_of_the_same_category_loses() -> None:
    truth = small_shop().truth
    first = int(np.flatnonzero(truth.complements[truth.category].any(axis=1))[0])
    other = int(np.flatnonzero(truth.complementarity(first, np.arange(len(truth.category))) > 0)[0])
    kin = next(int(row) for row in np.flatnonzero(truth.category == truth.category[first]) if row != first)
    alone = expected_clicks(truth, [0], [[first, other]], [START + YEAR], effects=NO_EFFECTS)
    assert (
        expected_clicks(truth, [0], [[first, other]], [START + YEAR], effects=ListEffects(fatigue=0))[0, 1]
        > (alone[0, 1])
    )
    mild, strong = (
        expected_clicks(truth, [0], [[first, kin]], [START + YEAR], effects=ListEffects(False, fatigue))[0]
        for fatigue in (0.0, 1.0)
    )
    assert strong[1] < mild[1]
    assert strong[0] == mild[0]


def test_repeated_missing_and_unavailable_items_are_never_clicked() -> None:
    truth = small_shop().truth
    clicks = expected_clicks(truth, [0, 0], [[5, 5, 7, -1], [5, 7, 5, 5]], [START + YEAR] * 2)
    assert (clicks > 0).tolist() == [[True, False, True, False], [True, True, False, False]]
    table = click_table(truth, [0], [[5, 7]], [START + YEAR], can_click=[[False, True]])
    assert (click_probabilities(table, EXAMINATION) > 0).tolist() == [[False, True]]
    assert any_click_probability(np.zeros((2, 4, 3)), EXAMINATION).tolist() == [0, 0]


def test_a_list_of_more_items_than_slots_is_an_error() -> None:
    with pytest.raises(ValueError, match="lists of 7 items: customers look at 6 slots"):
        expected_clicks(small_shop().truth, [0], [list(range(7))], [START + YEAR])


def test_sampled_clicks_have_the_expected_probabilities() -> None:
    items, last = lists()
    table = click_table(small_shop().truth, USERS[:3], items[:3], TIMES[:3], last_items=last[:3])
    expected = click_probabilities(table, EXAMINATION)
    rng, num = np.random.default_rng(1), 20_000
    looks, chances = rng.random((2, num * 3, items.shape[1]))
    clicks = sample_clicks(np.tile(table, (num, 1, 1)), EXAMINATION, looks, chances)
    shares = clicks.reshape(num, 3, -1).mean(axis=0)
    assert (abs(shares - expected) < 4 * (expected * (1 - expected) / num) ** 0.5).all()
    is_any = clicks.any(axis=1).reshape(num, 3).mean(axis=0)
    assert is_any == pytest.approx(any_click_probability(table, EXAMINATION), abs=0.02)


def test_equal_values_above_are_counted() -> None:
    values = np.array([[1, 2, 1, 1, -1, -1]])
    assert same_above(values, is_item=values >= 0).tolist() == [[0, 0, 1, 2, 0, 0]]
