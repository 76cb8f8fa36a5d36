"""What is optimal over time in a small closed world: against play, and against the best list of each visit."""

from __future__ import annotations

import numpy as np
import pytest

from nextitem.data.shop.list_truth import ListEffects, click_probabilities, list_table, sample_clicks
from nextitem.data.shop.truth import Floats
from nextitem.simulation.answers import CustomerConfig, ListProblem
from nextitem.simulation.planning import Plan, best_plan

EFFECTS = ListEffects(True, 0.4, False, (1.0, 0.7))
SETTINGS = CustomerConfig(churn=0.4, examination=(1.0, 0.7), list_complements=True, list_fatigue=0.4)


def trap() -> ListProblem:
    """Return a world in which the most attractive item leads nowhere, and another one to a rich state."""
    gains = np.zeros((4, 4))
    gains[1, 2] = gains[2, 1] = 3.0
    return ListProblem(np.array([[0.3, -0.3, -0.6, -1.0]]), np.arange(4), gains, np.array([-1]), EFFECTS)


def played(plan: Plan, problem: ListProblem, *, num: int) -> Floats:
    """Return the clicks of customers who are shown the lists of a plan until they leave, sampled."""
    rng, looks = np.random.default_rng(0), np.array(EFFECTS.examination)
    num_items = problem.appeal.shape[1]
    state, total, is_here = np.full(num, num_items), np.zeros(num), np.ones(num, dtype=bool)
    while is_here.any():
        who = np.flatnonzero(is_here)
        rows = plan.rows[state[who]]
        before = np.where(state[who] < num_items, problem.groups[np.minimum(state[who], num_items - 1)], -1)
        table = list_table(
            problem.appeal[0][rows],
            rows,
            problem.groups[rows],
            gains=problem.gains,
            before=before,
            effects=EFFECTS,
        )
        clicks = sample_clicks(table, looks, *rng.random((2, len(who), 2)))
        total[who] += clicks.sum(axis=1)
        for slot in range(2):
            state[who] = np.where(clicks[:, slot], rows[:, slot], state[who])
        appeal = 1 - np.prod(1 - looks * table[:, 0, :], axis=1)
        is_here[who] = rng.random(len(who)) >= SETTINGS.churn * (1 - appeal)
    return total


def test_the_plan_is_worth_its_value_in_play_and_at_least_the_best_list_of_each_visit() -> None:
    problem = trap()
    plan = best_plan(problem, SETTINGS, size=2)
    assert (plan.values >= plan.present_values - 1e-9).all()
    assert plan.values[-1] > 1.02 * plan.present_values[-1]
    total = played(plan, problem, num=4000)
    assert total.mean() == pytest.approx(plan.values[-1], abs=3 * total.std() / 4000**0.5)


def test_values_satisfy_their_own_equation() -> None:
    problem = trap()
    plan = best_plan(problem, SETTINGS, size=1)
    looks, items = np.array([1.0]), problem.appeal.shape[1]
    for state in range(items + 1):
        worth = []
        for item in range(items):
            rows = np.array([[item]])
            table = list_table(
                problem.appeal[0][rows],
                rows,
                problem.groups[rows],
                gains=problem.gains,
                before=np.array([state if state < items else -1]),
                effects=EFFECTS,
            )
            click = float(click_probabilities(table, looks)[0, 0])
            stays = 1 - 0.4 * (1 - click)
            worth.append(click + stays * (click * plan.values[item] + (1 - click) * plan.values[state]))
        assert max(worth) == pytest.approx(plan.values[state])
        assert int(np.argmax(worth)) == plan.rows[state, 0]


def test_without_a_memory_the_best_list_of_each_visit_is_optimal() -> None:
    problem = trap()
    calm = ListProblem(problem.appeal, problem.groups, 0 * problem.gains, problem.before, problem.effects)
    plan = best_plan(calm, SETTINGS, size=2)
    assert plan.values == pytest.approx(plan.present_values)
    one = ListProblem(np.array([[0.2]]), np.zeros(1, np.int64), np.zeros((1, 1)), np.array([-1]), EFFECTS)
    click = 1 / (1 + np.exp(-0.2))
    alone = best_plan(one, SETTINGS, size=1)
    assert alone.values[0] == pytest.approx(click / (0.4 * (1 - click)))


def test_worlds_that_are_not_closed_are_refused() -> None:
    with pytest.raises(ValueError, match="churn above 0"):
        best_plan(trap(), CustomerConfig(churn=0.0), size=1)
    with pytest.raises(ValueError, match="satisfaction_memory 0"):
        best_plan(trap(), CustomerConfig(churn=0.1, satisfaction_memory=0.5), size=1)
    large = ListProblem(np.zeros((1, 50)), np.arange(50), np.zeros((50, 50)), np.array([-1]), EFFECTS)
    with pytest.raises(ValueError, match="too many"):
        best_plan(large, SETTINGS, size=3)
