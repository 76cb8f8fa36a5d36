"""The best list: against all lists, with a bound that no list exceeds."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from support.simulated_shop import small_shop

from nextitem.data.shop.list_truth import NO_EFFECTS, ListEffects
from nextitem.simulation.answers import ListProblem
from nextitem.simulation.optimum import best_lists, list_values, proven_lists
from nextitem.simulation.world import EnvironmentConfig, World


def problem(seed: int, *, num_items: int = 7, effects: ListEffects | None = None) -> ListProblem:
    """Return a problem of three customers, four groups and strong effects; one item cannot be clicked by the first."""
    rng = np.random.default_rng(seed)
    appeal = rng.normal(-0.5, 1.2, size=(3, num_items))
    appeal[0, num_items // 2] = -np.inf
    return ListProblem(
        appeal,
        rng.integers(4, size=num_items),
        np.maximum(0, rng.normal(size=(4, 4))),
        rng.integers(-1, 4, size=3),
        effects or ListEffects(True, 0.7, False, (1.0, 0.8, 0.6)),
    )


def best_of_all(every: ListProblem, size: int) -> list[float]:
    lists = np.array(list(permutations(range(every.appeal.shape[1]), size)))
    rows = range(len(every.appeal))
    return [float(list_values(every.select(np.full(len(lists), row)), lists).max()) for row in rows]


@pytest.mark.parametrize("seed", range(8))
def test_the_best_list_is_the_best_of_all_lists_and_proven_to_be(seed: int) -> None:
    every = problem(seed)
    best = best_lists(every)
    assert best.values == pytest.approx(best_of_all(every, 3), abs=1e-12)
    assert best.is_proven.all()
    assert list_values(every, best.rows) == pytest.approx(best.values)
    assert all(len(set(row)) == 3 for row in best.rows.tolist())


@pytest.mark.parametrize("seed", range(8))
def test_no_list_exceeds_the_bound_of_a_narrow_search(seed: int) -> None:
    every = problem(seed + 100)
    narrow, priced = best_lists(every, widths=(1,)), best_lists(every, widths=(1, 2), max_candidates=4)
    truth = best_of_all(every, 3)
    assert (narrow.values <= np.array(truth) + 1e-12).all()
    assert (narrow.values > 0.9 * np.array(truth)).all()
    assert (narrow.bounds >= np.array(truth) - 1e-12).all()
    assert (priced.bounds >= np.array(truth) - 1e-12).all()
    assert (priced.bounds <= narrow.bounds + 1e-12).mean() > 0.6


def test_without_effects_the_best_list_is_sorted_by_click_probability_and_by_how_much_slots_are_looked_at() -> None:
    effects = ListEffects(False, 0.0, True, (0.5, 1.0, 0.2))
    every = problem(3, effects=effects)
    best = best_lists(every)
    assert best.values == pytest.approx(best_of_all(every, 3), abs=1e-12)
    assert best.is_proven.all()
    every = problem(4, effects=NO_EFFECTS)
    gains = np.where(every.before[:, None] >= 0, every.gains[every.before][:, every.groups], 0)
    assert best_lists(every).rows[1].tolist() == np.argsort(-(every.appeal + gains)[1])[:6].tolist()


def test_a_complement_below_can_be_worth_more_than_the_next_best_item() -> None:
    gains = np.zeros((3, 3))
    gains[0, 2] = 2.5
    effects = ListEffects(True, 0.0, False, (1.0, 1.0))
    best = best_lists(ListProblem(np.array([[1.5, 0.0, -0.5]]), np.arange(3), gains, np.array([-1]), effects))
    assert best.rows.tolist() == [[0, 2]]
    calm = ListProblem(np.array([[1.5, 0.0, -0.5]]), np.arange(3), 0 * gains, np.array([-1]), effects)
    assert best_lists(calm).rows.tolist() == [[0, 1]]


def test_one_item_no_item_and_nobody() -> None:
    effects = ListEffects()
    one = ListProblem(np.array([[0.3]]), np.zeros(1, np.int64), np.zeros((1, 1)), np.array([-1]), effects)
    best = best_lists(one)
    assert best.rows.tolist() == [[0]]
    assert best.values[0] == pytest.approx(1 / (1 + np.exp(-0.3)))
    nothing = ListProblem(np.full((1, 2), -np.inf), np.zeros(2, np.int64), np.zeros((1, 1)), np.array([0]), effects)
    best = best_lists(nothing)
    assert best.rows.tolist() == [[-1, -1]]
    assert best.values.tolist() == best.bounds.tolist() == [0.0]
    assert best_lists(one.select(np.array([], dtype=np.int64))).values.shape == (0,)


def test_lists_of_the_shop_are_hardly_improved_by_a_wide_search() -> None:
    world = World(small_shop(), EnvironmentConfig(customers=40))
    who, times = np.arange(40), world.first_times()
    every = world.list_problem(who, times)
    usual, wide = best_lists(every), best_lists(every, widths=(100,))
    assert (usual.values > 0.95 * wide.values).all()
    assert usual.values.mean() > 0.998 * wide.values.mean()
    assert (usual.bounds >= wide.values - 1e-12).all()
    by_appeal = np.argsort(-every.appeal, axis=1)[:, :6]
    assert (list_values(every, by_appeal) <= usual.values + 1e-12).all()
    assert world.click_table(who, times, usual.rows).shape == (40, 7, 6)


@pytest.mark.slow
def test_best_lists_of_the_shop_are_proven() -> None:
    """With tight bounds, the search of all lists of 150 items comes to its end."""
    world = World(small_shop(), EnvironmentConfig(customers=6))
    every = world.list_problem(np.arange(6), world.first_times())
    proven, usual = proven_lists(every), best_lists(every)
    assert proven.is_proven.mean() > 0.8
    assert proven.bounds == pytest.approx(proven.values, rel=0.02)
    assert (usual.values <= proven.bounds + 1e-12).all()
    assert usual.values.sum() > 0.97 * proven.values.sum()
    assert list_values(every, proven.rows) == pytest.approx(proven.values)
