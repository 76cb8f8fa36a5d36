"""What is optimal over time, exactly, in a world that is small and closed enough: value iteration.

The best list for the present visit need not be the best one in the long run: a list may lead to a last item, or to a
satisfaction, from which later lists gain. In general this has no exact solution, and regret is measured visit by visit.
In a closed world it has one: nothing depends on time, nothing bores or moves tastes, nothing is used up, satisfaction
is that of the last list. Then the state of a customer is the last item alone, and the value of a state is the expected
number of clicks until the customer leaves for good, however long that takes.

Shapes: S states (N last items and none), L lists, K slots, N items.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from nextitem.data.shop.list_truth import any_click_probability, last_clicks, list_table
from nextitem.data.shop.truth import Floats, Ints
from nextitem.simulation.answers import CustomerConfig, ListProblem

MAX_LISTS = 20_000
TOLERANCE = 1e-12  # of clicks, relative to the largest value


@dataclass(frozen=True, eq=False)
class Plan:
    """What is optimal for one customer of a closed world.

    Attributes:
        values: expected clicks until the customer leaves, for each last item and, at the end, for none, [N + 1].
        rows: the list to show in each state, [N + 1, K].
        present_values: expected clicks until the customer leaves, if each list is best for its own visit, [N + 1].

    """

    values: Floats
    rows: Ints
    present_values: Floats


def best_plan(problem: ListProblem, settings: CustomerConfig, *, size: int) -> Plan:
    """Return the optimal lists of one customer by value iteration over all lists.

    Args:
        problem: the problem of one customer, [1, N] appeal; its last item does not matter.
        settings: settings of the world, with churn above 0.
        size: number of slots (K).

    Raises:
        ValueError: customers never leave, satisfaction remembers more than the last list, or there are too many lists.

    """
    if not settings.churn or settings.satisfaction_memory:
        raise ValueError("a closed world has churn above 0, and satisfaction_memory 0")
    num_items = problem.appeal.shape[1]
    if np.prod([float(num_items - slot) for slot in range(size)]) > MAX_LISTS:
        raise ValueError(f"lists of {size} of {num_items} items are too many to compare")
    lists = np.array(list(permutations(range(num_items), size)), dtype=np.int64)
    clicks, stays, follows = _outcomes(problem, settings, lists)
    present = clicks.argmax(axis=1)
    every = np.arange(num_items + 1)
    values, present_values = np.zeros(num_items + 1), np.zeros(num_items + 1)
    while True:
        future = clicks + stays * (follows @ values)
        own = clicks[every, present] + stays[every, present] * (follows[every, present] @ present_values)
        change = max(abs(future.max(axis=1) - values).max(), abs(own - present_values).max())
        values, present_values = future.max(axis=1), own
        if change <= TOLERANCE * max(1.0, values.max()):
            return Plan(values, lists[future.argmax(axis=1)], present_values)


def _outcomes(problem: ListProblem, settings: CustomerConfig, lists: Ints) -> tuple[Floats, Floats, Floats]:
    """Return what each list leads to in each state.

    Returns:
        The expected clicks, [S, L]; the probability that the customer stays, [S, L]; the probability of each state at
        the next visit, [S, L, S].

    """
    num_items, (count, size) = problem.appeal.shape[1], lists.shape
    looks = np.array(problem.effects.examination[:size])
    clicks, stays = np.zeros((2, num_items + 1, count))
    follows = np.zeros((num_items + 1, count, num_items + 1))
    for state in range(num_items + 1):
        appeal = problem.appeal[0][lists]
        before = np.full(count, -1 if state == num_items else problem.groups[state])
        table = list_table(
            appeal,
            lists,
            problem.groups[lists],
            gains=problem.gains,
            before=before,
            effects=problem.effects,
            can_click=np.isfinite(appeal),
        )
        expected, last = last_clicks(table, looks)
        clicks[state] = expected.sum(axis=1)
        stays[state] = 1 - settings.churn * (1 - any_click_probability(table, looks))
        follows[state, :, state] += last[:, 0]
        for slot in range(size):
            follows[state, np.arange(count), lists[:, slot]] += last[:, slot + 1]
    return clicks, stays, follows
