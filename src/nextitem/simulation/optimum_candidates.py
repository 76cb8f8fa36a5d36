"""Items from which best lists can be composed: the most promising ones, and what is known of the others.

In a group, an item is better replaced by an unused one of more appeal, as long as no change of state can cost a whole
click (`_can_reduce`). So only the best K items of each group matter. Of these, the candidates are the most promising;
what is known of the others is the largest probability of a click on any of them.

Shapes: B customers, N items, M candidates, K slots, G groups.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nextitem.data.shop.list_truth import same_above
from nextitem.data.shop.truth import Floats, Ints
from nextitem.simulation.answers import ListProblem

MAX_CANDIDATES = 64


class Candidates(NamedTuple):
    """Items from which lists are composed, and what is known of each.

    Attributes:
        rows: rows of the items, [B, M]; items that cannot be clicked have the appeal -inf.
        appeal: logits of the items alone, [B, M].
        groups: groups of the items, [B, M].
        largest: the largest gain of each item from any group, [B, M].
        bonus: the largest rise of each item's click probability that a look at one other item can cause, [B, M].
        rest: the largest click probability of an item that is no candidate, [B].

    """

    rows: Ints
    appeal: Floats
    groups: Ints
    largest: Floats
    bonus: Floats
    rest: Floats

    def select(self, rows: Ints) -> Candidates:
        """Return the candidates of some of the customers."""
        return Candidates(
            self.rows[rows], self.appeal[rows], self.groups[rows], self.largest[rows], self.bonus[rows], self.rest[rows]
        )


def candidates_of(problem: ListProblem, size: int, max_candidates: int = MAX_CANDIDATES) -> Candidates:
    """Return the candidates: the most promising items among those that can be in a best list."""
    gains, groups = problem.gains if problem.effects.complements else np.zeros_like(problem.gains), problem.groups
    # An item gains from a group only if the customer can click an item of it, or did before the list.
    present = np.zeros((len(problem.appeal), len(gains)), dtype=np.bool_)
    customers, items = np.nonzero(np.isfinite(problem.appeal))
    present[customers, groups[items]] = True
    has_before = np.flatnonzero(problem.before >= 0)
    top_gain = np.where(present[:, :, None], gains[None], 0.0).max(axis=1)  # [B, G]
    before_gain = np.zeros_like(top_gain)
    before_gain[has_before] = problem.gains[problem.before[has_before]]
    top_gain = np.maximum(top_gain, before_gain)
    hopes = problem.appeal + top_gain[:, groups]
    num_items, count = hopes.shape[1], min(max_candidates, hopes.shape[1])
    front = min(4 * max_candidates, num_items)
    order = np.argpartition(-hopes, front - 1, axis=1)[:, :front]
    order = np.take_along_axis(order, np.argsort(-np.take_along_axis(hopes, order, axis=1), axis=1, kind="stable"), 1)
    hopes = np.take_along_axis(hopes, order, axis=1)
    rest = hopes[:, -1] if num_items > front else np.full(len(order), -np.inf)
    if _can_reduce(gains, problem):
        # Within a group, hopes are in the order of appeal, so better items of a group come first.
        hopes = np.where(same_above(groups[order], is_item=np.isfinite(hopes)) < size, hopes, -np.inf)
    places = np.argsort(-hopes, axis=1, kind="stable")
    if front > count:
        rest = np.maximum(rest, np.take_along_axis(hopes, places[:, count : count + 1], axis=1)[:, 0])
    rest = sigmoid(rest)
    rows = np.take_along_axis(order, places[:, :count], axis=1)
    is_candidate = np.isfinite(np.take_along_axis(hopes, places[:, :count], axis=1))
    appeal = np.where(is_candidate, np.take_along_axis(problem.appeal, rows, axis=1), -np.inf)
    of_rows, own = groups[rows], np.take_along_axis(top_gain, groups[rows], axis=1)
    # Of a click on an item h (at most as probable as its best state allows), an item i gains by their groups.
    best_click = np.zeros(present.shape)
    np.maximum.at(
        best_click, (np.arange(len(rows))[:, None], groups[None]), sigmoid(problem.appeal + top_gain[:, groups])
    )
    rises = sigmoid(appeal[:, None, :] + gains[:, of_rows].transpose(1, 0, 2)) - sigmoid(appeal)[:, None, :]
    bonus = (best_click[:, :, None] * rises).max(axis=1)
    return Candidates(rows, appeal, of_rows, own, bonus, rest)


def _can_reduce(gains: Floats, problem: ListProblem) -> bool:
    """Return whether one click is always worth more than what a change of state can cost in the slots below.

    The probabilities of two logits that differ by g differ by at most tanh(g / 4).
    """
    largest = max(float(gains.max(initial=0.0)), float(problem.gains.max(initial=0.0)))
    return bool(np.tanh(largest / 4) * sum(problem.effects.examination[1:]) < 1)


def sigmoid(values: Floats) -> Floats:
    """Return 1 / (1 + exp(-x)) of each value."""
    result: Floats = 1 / (1 + np.exp(-values))
    return result
