"""Off-policy estimates are exact on small worlds whose log contains every list as often as it is probable."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from nextitem.evaluation.importance_weights import clipped, shrunk, sub_gaussian, switched
from nextitem.evaluation.logged_lists import Floats, Ints, LoggedLists, TargetPolicy
from nextitem.evaluation.off_policy import Estimate, estimates
from nextitem.evaluation.plackett_luce import plackett_luce, slot_probabilities
from nextitem.evaluation.reward_model import Predictions

_rng = np.random.default_rng(5)
# Two equally frequent contexts with three actions; probabilities are quarters, so four lists show each context exactly.
LOGGING = np.array([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]])
ACTIONS = np.array([[0, 0, 1, 2], [0, 1, 2, 2]])
TARGET = np.array([[0.1, 0.2, 0.7], [0.55, 0.4, 0.05]])
REWARDS = _rng.uniform(0.1, 0.9, (2, 3))
ACTION_TRUTH = float((TARGET * REWARDS).sum(1).mean())
# Three items in two slots. The Plackett-Luce policy with these weights shows the lists 3, 3, 2, 1, 2, 1 times in 12.
ITEM_WEIGHTS, LIST_COUNTS = np.array([0.5, 0.25, 0.25]), [3, 3, 2, 1, 2, 1]
LISTS = np.array(list(permutations(range(3), 2)))
LIST_TARGET = np.array([0.15, 0.25, 0.6])
ALL, CASCADE, MODEL = ("ips", "snips"), ("rips", "dr", "sndr"), ("switch-dr", "dros", "sg-dr")


def by_name(logged: LoggedLists, target: TargetPolicy, predicted: Predictions | None = None) -> dict[str, Estimate]:
    return {each.estimator: each for each in estimates(logged, target, predicted=predicted)}


def action_log() -> tuple[LoggedLists, TargetPolicy, Ints]:
    """Return the log of single actions, the target, and the context of each row."""
    context = np.repeat([0, 1], 4)
    actions = ACTIONS.ravel()
    logged = LoggedLists(
        REWARDS[context, actions][:, None],
        LOGGING[context, actions][:, None],
        actions[:, None],
        np.ones((8, 1), np.bool_),
        np.arange(8),
    )
    candidates = np.broadcast_to(np.arange(3), (8, 3))
    return logged, TargetPolicy(TARGET[context, actions][:, None], candidates, TARGET[context][:, None]), context


def action_predictions(model: Floats) -> Predictions:
    """Return the predictions of a table of rewards by context and action."""
    logged, _, context = action_log()
    expected = (TARGET * model).sum(1)[context]
    return Predictions(model[context, logged.items[:, 0]][:, None], expected[:, None], is_overall=True)


def list_log(rewards: Callable[[Ints], Floats]) -> tuple[LoggedLists, TargetPolicy, float]:
    """Return the log of lists whose slots have rewards [6, 2] as a function of the list, the target, and the truth."""
    rows = np.repeat(np.arange(6), LIST_COUNTS)
    lists = LISTS[rows]
    shape = (len(lists), 3)
    propensities, _ = plackett_luce(np.broadcast_to(np.log(ITEM_WEIGHTS), shape), lists)
    probabilities, distributions = plackett_luce(np.broadcast_to(np.log(LIST_TARGET), shape), lists)
    overall = {
        name: np.broadcast_to(slot_probabilities(weights[None], 2), (len(lists), 2, 3))
        for name, weights in (("logging", ITEM_WEIGHTS), ("target", LIST_TARGET))
    }
    of_items = {name: np.take_along_axis(each, lists[..., None], 2)[..., 0] for name, each in overall.items()}
    logged = LoggedLists(
        rewards(lists), propensities, lists, np.ones(lists.shape, np.bool_), np.arange(12), of_items["logging"]
    )
    target = TargetPolicy(
        probabilities, np.broadcast_to(np.arange(3), shape), distributions, of_items["target"], overall["target"]
    )
    of_lists, _ = plackett_luce(np.broadcast_to(np.log(LIST_TARGET), (6, 3)), LISTS)
    return logged, target, float((of_lists.prod(1) * rewards(LISTS).sum(1)).sum())


def independent(lists: Ints) -> Floats:
    return np.array([[0.9, 0.2, 0.4], [0.1, 0.7, 0.3]])[np.arange(2), lists]


def cascade(lists: Ints) -> Floats:
    """Return rewards of which the second depends on the item above."""
    rewards = independent(lists)
    rewards[:, 1] *= np.array([1.0, 0.3, 2.0])[lists[:, 0]]
    return rewards


def arbitrary(lists: Ints) -> Floats:
    """Return rewards of which the first depends on the item below, too."""
    rewards = cascade(lists)
    rewards[:, 0] *= np.array([0.2, 1.0, 3.0])[lists[:, 1]]
    return rewards


@pytest.mark.parametrize("model", [REWARDS, np.zeros((2, 3)), 1 - 3 * REWARDS])
def test_single_actions_are_exact_for_any_model(model: Floats) -> None:
    logged, target, _ = action_log()
    result = by_name(logged, target, action_predictions(model))
    for name in (*ALL, *CASCADE, "iips"):
        assert result[name].reward.value == pytest.approx(ACTION_TRUTH), name
    assert (result["dm"].reward.value == pytest.approx(ACTION_TRUTH)) is (model is REWARDS)


def test_a_right_model_makes_up_for_wrong_propensities() -> None:
    logged, target, _ = action_log()
    wrong = replace(logged, propensities=np.linspace(0.1, 0.8, 8)[:, None])
    right_model = by_name(wrong, target, action_predictions(REWARDS))
    for name in ("dm", "dr", "sndr", *MODEL):
        assert right_model[name].reward.value == pytest.approx(ACTION_TRUTH), name
    both_wrong = by_name(wrong, target, action_predictions(1 - REWARDS))
    assert both_wrong["dr"].reward.value != pytest.approx(ACTION_TRUTH)
    assert both_wrong["ips"].reward.value != pytest.approx(ACTION_TRUTH)


def test_limited_weights_have_the_expectation_of_their_formula() -> None:
    """The expectation is a sum over contexts and actions, at the limit that the estimate reports."""
    logged, target, _ = action_log()
    model = 0.5 * REWARDS + 0.2
    result = by_name(logged, target, action_predictions(model))
    formulas: dict[str, Callable[[float, float], float]] = {
        "clipped-ips": min,
        "sg-ips": lambda w, c: w / (1 - 1 / c + w / c),
        "switch-dr": lambda w, c: w if w <= c else 0.0,
        "dros": lambda w, c: w if math.isinf(c) else c * c * w / (w * w + c * c),
        "sg-dr": lambda w, c: w / (1 - 1 / c + w / c),
    }
    for name, formula in formulas.items():
        limit, expected = result[name].limit, 0.0
        assert limit is not None
        for x in range(2):
            for a in range(3):
                has_model = name not in ("clipped-ips", "sg-ips")
                weight = formula(TARGET[x, a] / LOGGING[x, a], limit)
                residual = REWARDS[x, a] - has_model * model[x, a]
                expected += 0.5 * (LOGGING[x, a] * weight * residual + has_model * TARGET[x, a] * model[x, a])
        assert result[name].reward.value == pytest.approx(expected), name


def test_lists_are_exact_if_their_assumption_holds() -> None:
    """Each estimator is exact in the worlds that it assumes, and wrong in a world that breaks its assumption."""
    exact = {
        arbitrary: {"ips", "snips"},
        cascade: {"ips", "snips", "rips"},
        independent: {"ips", "snips", "rips", "iips"},
    }
    for rewards, names in exact.items():
        result = list_log(rewards)
        values = by_name(*result[:2])
        for name in ("ips", "snips", "rips", "iips"):
            assert (values[name].reward.value == pytest.approx(result[2])) is (name in names), (rewards, name)
    logged, target, truth = list_log(independent)
    conditional = by_name(replace(logged, overall_propensities=None), target)
    assert conditional["iips"].reward.value != pytest.approx(truth)


@pytest.mark.parametrize("is_overall", [True, False])
def test_a_model_of_lists_may_be_wrong_if_the_weights_are_right(is_overall: bool) -> None:
    logged, target, truth = list_log(cascade)
    model = _rng.uniform(size=(2, 3))
    distributions = target.overall_distributions if is_overall else target.distributions
    assert distributions is not None
    predicted = Predictions(model[np.arange(2), logged.items], (distributions * model).sum(2), is_overall=is_overall)
    result = by_name(logged, target, predicted)
    assert result["dr"].reward.value == pytest.approx(truth)
    assert result["sndr"].reward.value == pytest.approx(truth)
    assert ("dm" in result) is is_overall


def test_a_right_model_of_lists_makes_up_for_wrong_propensities() -> None:
    logged, target, truth = list_log(independent)
    wrong = replace(logged, propensities=np.full((12, 2), 0.4))
    model = np.array([[0.9, 0.2, 0.4], [0.1, 0.7, 0.3]])
    assert target.overall_distributions is not None
    predicted = Predictions(logged.rewards, (target.overall_distributions * model).sum(2), is_overall=True)
    result = by_name(wrong, target, predicted)
    for name in ("dm", "dr", "sndr", *MODEL):
        assert result[name].reward.value == pytest.approx(truth), name
    assert result["rips"].reward.value != pytest.approx(truth)


def test_the_logging_policy_has_the_mean_reward_by_all_estimators() -> None:
    logged, target, context = action_log()
    mean = logged.rewards.mean()
    itself = TargetPolicy(logged.propensities, target.candidates, LOGGING[context][:, None])
    expected = (LOGGING * REWARDS).sum(1)[context][:, None]
    result = by_name(logged, itself, Predictions(logged.rewards, expected, is_overall=True))
    for name, estimate in result.items():
        assert estimate.reward.value == pytest.approx(mean), name
        assert estimate.limit in (None, math.inf)
        assert estimate.largest_weight == 1


def test_normalised_estimates_move_with_the_rewards() -> None:
    """If all rewards grow by 5, so do snips and sndr; ips errs by 5 times the error of the mean weight."""
    logged, target, _ = action_log()
    rewards, propensities, items, is_item = logged.rewards, logged.propensities, logged.items, logged.is_item
    some = LoggedLists(rewards[:5], propensities[:5], items[:5], is_item[:5], np.arange(5))
    policy = TargetPolicy(target.probabilities[:5])
    more = replace(some, rewards=some.rewards + 5)
    first, second = by_name(some, policy), by_name(more, policy)
    assert second["snips"].reward.value == pytest.approx(first["snips"].reward.value + 5)
    mean_weight = float((policy.probabilities / some.propensities).mean())
    assert mean_weight != pytest.approx(1)
    assert second["ips"].reward.value == pytest.approx(first["ips"].reward.value + 5 * mean_weight)
    zeros = Predictions(np.zeros((5, 1)), np.zeros((5, 1)), is_overall=True)
    values = [by_name(each, policy, zeros)["sndr"].reward.value for each in (some, more)]
    assert values[1] == pytest.approx(values[0] + 5)


def test_changed_weights_worked_out_by_hand() -> None:
    weights = np.array([0.0, 0.5, 2.0, 6.0])
    assert clipped(weights, 2.0).tolist() == [0, 0.5, 2, 2]
    assert switched(weights, 2.0).tolist() == [0, 0.5, 2, 0]
    assert shrunk(weights, 2.0) == pytest.approx([0, 0.5 / (1 + 1 / 16), 1.0, 0.6])
    assert sub_gaussian(weights, 2.0) == pytest.approx([0, 0.5 / 0.75, 2 / 1.5, 6 / 3.5])
    for change in (clipped, switched, shrunk, sub_gaussian):
        assert change(weights, math.inf).tolist() == weights.tolist()
