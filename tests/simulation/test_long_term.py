"""Invariants of customers over time: influence, boredom, return, churn; rollouts of policies and their measures."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from support.simulated_shop import small_shop

from nextitem.data.shop.catalog import FIRST_ITEM
from nextitem.serving.exploration import propensities
from nextitem.simulation.answers import DAY
from nextitem.simulation.chance import uniform_numbers
from nextitem.simulation.changes import TASTE_LENGTH
from nextitem.simulation.measures import MEASURES, bound_gap, customer_measures
from nextitem.simulation.policies import OptimalLists, Policy, PopularItems, RandomItems, sampled_lists
from nextitem.simulation.rollout import Rollout, roll_out
from nextitem.simulation.world import EnvironmentConfig, World

COUNTS = np.bincount(small_shop().interactions["item_id"].to_numpy() - FIRST_ITEM, minlength=160)


def world(**settings: Any) -> World:
    fixed = {"customers": 80, "days": 16, "new_items": 10, "leaving_items": 10}
    return World(small_shop(), EnvironmentConfig(**{**fixed, **settings}))


def rolled(name: str, **settings: Any) -> Rollout:
    simulated = world(**settings)
    policies: dict[str, Policy] = {
        "optimal": OptimalLists(simulated),
        "popularity": PopularItems(COUNTS),
        "random": RandomItems(0),
    }
    return roll_out(simulated, policies[name], temperature=settings.get("temperature", 0.0))


@pytest.fixture(scope="module")
def rollouts() -> dict[str, Rollout]:
    return {name: rolled(name) for name in ("optimal", "popularity", "random")}


def test_taste_moves_to_what_was_clicked_and_to_nothing_else() -> None:
    """Each customer ends nearer to the own items, not all of them further along one direction."""
    simulated = world(influence=0.3, customers=40)
    truth, state = simulated.truth, simulated.customers
    who, times = np.arange(40), simulated.first_times()
    seconds = times.astype(np.int64)
    rows = np.argsort(-simulated.appeals(who, times, np.arange(150)[None]), axis=1)[:, [0, 40, 80, 1, 41, 81]]
    before = truth.tastes(state.rows, seconds) + state.taste_shift
    interest = truth.interests(state.rows, seconds)
    answers = simulated.answers(who, times, np.ones(40, np.int64), rows)
    moved = state.taste_shift
    is_clicked = answers.clicks.any(axis=1)
    assert 5 < is_clicked.sum() < 40
    assert not moved[~is_clicked].any()
    assert not state.interest_shift[~is_clicked].any()
    for customer in np.flatnonzero(is_clicked):
        taste = before[customer]
        for row in rows[customer][answers.clicks[customer]]:
            taste = taste + 0.3 * (TASTE_LENGTH * truth.vectors[row] - taste)
        assert moved[customer] == pytest.approx(taste - before[customer])
        last = rows[customer][answers.clicks[customer]][-1]
        goal = TASTE_LENGTH * truth.vectors[last]
        if answers.clicks[customer].sum() == 1:
            assert np.linalg.norm(taste - goal) == pytest.approx(0.7 * np.linalg.norm(before[customer] - goal))
        department = truth.department[last]
        centred = interest[customer] - interest[customer].mean()
        if centred[department] < 2 and answers.clicks[customer].sum() == 1:
            assert state.interest_shift[customer][department] > 0
    directions = moved[is_clicked] / np.linalg.norm(moved[is_clicked], axis=1, keepdims=True)
    assert abs(directions @ directions.T)[~np.eye(len(directions), dtype=bool)].min() < 0.2


def test_a_better_list_brings_a_customer_back_sooner_and_keeps_more_customers() -> None:
    good, bad = world(churn=0.5), world(churn=0.5)
    who, times, first = np.arange(80), good.first_times(), np.ones(80, np.int64)
    problem = good.list_problem(who, times)
    order = np.argsort(-problem.appeal, axis=1)
    better = good.answers(who, times, first, order[:, :6])
    worse = bad.answers(who, times, first, order[:, -6:])
    assert (better.appeal > worse.appeal).all()
    stays = np.isfinite(worse.next_times)
    assert (better.next_times[stays] <= worse.next_times[stays]).all()
    assert (better.next_times[stays] < worse.next_times[stays]).mean() > 0.9
    assert good.has_left.sum() < bad.has_left.sum()
    assert not (good.has_left & ~bad.has_left).any()


def test_what_was_shown_bores_and_is_forgotten() -> None:
    simulated = world(boredom=0.5, influence=0.0, drift=0.0, customers=10)
    who, times = np.arange(10), simulated.first_times()
    rows = np.tile(np.arange(6), (10, 1))
    everything = np.arange(150)[None]
    before = simulated.appeals(who, times, everything)
    simulated.answers(who, times, np.ones(10, np.int64), rows)
    soon, late = (before - simulated.appeals(who, times + days * DAY, everything) for days in (0, 21))
    is_kin = np.isin(simulated.groups[:150], simulated.groups[rows[0]])
    assert soon[:, ~is_kin] == pytest.approx(0)
    assert (soon[:, is_kin] > 0.1).all()
    looks = np.bincount(simulated.groups[rows[0]], weights=simulated.config.examination, minlength=60)
    assert soon[0] == pytest.approx(0.5 * looks[simulated.groups[:150]])
    unchanged = world(boredom=0.0, influence=0.0, drift=0.0, customers=10)
    passed = before - unchanged.appeals(who, times + 21 * DAY, everything)  # season and novelty
    assert late - passed == pytest.approx(soon * np.exp(-3))


def test_satisfaction_remembers() -> None:
    simulated = world(satisfaction_memory=0.75)
    who, times = np.arange(80), simulated.first_times()
    first = simulated.answers(who, times, np.ones(80, np.int64), np.tile(np.arange(6), (80, 1)))
    assert first.satisfaction.tolist() == first.appeal.tolist()
    second = simulated.answers(who, times + DAY, np.full(80, 2), np.tile(np.arange(6, 12), (80, 1)))
    assert second.satisfaction == pytest.approx(0.75 * first.appeal + 0.25 * second.appeal)


def test_the_order_of_customers_does_not_matter() -> None:
    first, second = world(), world()
    times, ones = first.first_times(), np.ones(80, np.int64)
    rows = np.tile(np.arange(6), (80, 1)) + np.arange(80)[:, None] % 50
    together = first.answers(np.arange(80), times, ones, rows)
    shuffled = np.random.default_rng(0).permutation(80)
    for customer in shuffled:
        one = np.array([customer])
        alone = second.answers(one, times[one], ones[:1], rows[one])
        assert alone.clicks[0].tolist() == together.clicks[customer].tolist()
        assert alone.next_times[0] == pytest.approx(together.next_times[customer])


def test_chance_is_uniform_and_independent() -> None:
    customers, visits = np.repeat(np.arange(200), 50), np.tile(np.arange(50), 200)
    numbers = uniform_numbers(3, 1, customers, visits, count=4)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert numbers.mean(axis=0) == pytest.approx(0.5, abs=0.012)
    assert numbers.var(axis=0) == pytest.approx(1 / 12, abs=0.003)
    others = [uniform_numbers(seed, purpose, customers, visits, count=4) for seed, purpose in ((4, 1), (3, 2))]
    columns = np.concatenate([numbers, *others, np.roll(numbers, 1, axis=0), np.roll(numbers, 50, axis=0)], axis=1)
    correlations = np.corrcoef(columns.T)[~np.eye(columns.shape[1], dtype=bool)]
    assert abs(correlations).max() < 0.045
    assert uniform_numbers(3, 1, customers[:5], visits[:5], count=2).tolist() == numbers[:5, :2].tolist()


def test_the_optimal_policy_has_no_regret_and_customers_stay(rollouts: dict[str, Rollout]) -> None:
    measures = {name: customer_measures(rollout) for name, rollout in rollouts.items()}
    means = {name: {part: np.nanmean(values) for part, values in each.items()} for name, each in measures.items()}
    assert means["optimal"]["regret"] == pytest.approx(0, abs=1e-12)
    assert means["optimal"]["regret"] < means["popularity"]["regret"] < means["random"]["regret"]
    for name in ("sessions", "clicks", "satisfaction", "return_rate", "retention"):
        assert means["optimal"][name] > means["popularity"][name] > means["random"][name]
    assert all(set(each) == set(MEASURES) for each in measures.values())
    assert 0 <= bound_gap(rollouts["optimal"]) < 0.3


def test_measures_of_a_small_course_by_hand(rollouts: dict[str, Rollout]) -> None:
    rollout = rollouts["popularity"]
    customer = int(rollout.visits["customer"].mode()[0])
    visits = rollout.visits.filter(customer=customer).sort("time")
    measures = {name: values[customer] for name, values in customer_measures(rollout).items()}
    times = [*visits["time"].to_list(), rollout.next_times[customer]]
    counted = [time for time in times[:-1] if time < rollout.world.end - 7 * DAY]
    soon = [later - time <= 7 * DAY for time, later in pairwise(times)][: len(counted)]
    assert measures["sessions"] == visits.height
    assert measures["return_rate"] == pytest.approx(np.mean(soon))
    assert measures["satisfaction"] == pytest.approx(visits["appeal"].mean())
    assert measures["retention"] == float(times[-2] >= rollout.world.end - 7 * DAY)
    value, best = (visits[name].to_numpy().sum() for name in ("value", "best_value"))
    assert measures["regret_share"] == pytest.approx((best - value) / best)


def test_a_rollout_is_the_same_again(rollouts: dict[str, Rollout]) -> None:
    again = rolled("popularity")
    assert again.visits.equals(rollouts["popularity"].visits)
    assert again.shown_items.equals(rollouts["popularity"].shown_items)
    assert world(seed=1).first_times().tolist() != world().first_times().tolist()


def test_sampled_lists_have_the_propensities_of_a_server() -> None:
    heads = np.tile(np.arange(20), (500, 1)) + 5
    heads[1, 8:] = -1
    numbers = uniform_numbers(0, 5, np.arange(500), np.ones(500, np.int64), count=20)
    lists = sampled_lists(heads, numbers, size=4, temperature=0.7)
    for row in range(5):
        size = 8 if row == 1 else 20
        expected = propensities(lists.rows[row] - 5, head_size=size, temperature=0.7)
        assert lists.propensities[row] == pytest.approx(expected)
    first = np.bincount(lists.rows[:, 0] - 5, minlength=20) / 500
    weights = np.arange(1, 21.0) ** (-1 / 0.7)
    assert first == pytest.approx(weights / weights.sum(), abs=0.07)
    assert sum(propensities([place], head_size=20, temperature=0.7)[0] for place in range(20)) == pytest.approx(1)
    short = sampled_lists(heads[:, :2], numbers[:, :2], size=4, temperature=1.0)
    assert short.rows.shape == (500, 2)


def test_a_rollout_with_exploration_logs_propensities() -> None:
    rollout = roll_out(world(customers=20), PopularItems(COUNTS), temperature=1.0, regret_customers=5)
    shown_items = rollout.shown_items
    assert (shown_items["propensity"] > 0).all()
    assert shown_items["propensity"].n_unique() > 50
    assert shown_items["row"].n_unique() > 30
    regret = customer_measures(rollout)["regret"]
    assert np.isfinite(regret[:5]).all()
    assert np.isnan(regret[5:]).all()
    random = roll_out(world(customers=20), RandomItems(0))
    assert random.shown_items.filter(slot=1)["propensity"].min() == pytest.approx(1 / 150, rel=0.1)
