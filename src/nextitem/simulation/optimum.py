"""The best list for the true state of each customer, with a proven bound on what a better one could be worth.

The value of a list is its expected number of clicks. Without effects within a list, the best list is sorted by appeal.
With them, lists are searched slot by slot: of all beginnings, the most promising stay, and every other is remembered by
an upper bound on the value of its completions. If no such bound exceeds the best list that was reached, this list is
proven to be the best; customers without a proof are searched again with more beginnings. What remains open is returned
as a bound, which is the largest amount by which any list can be better.

Three facts bound a completion. Clicks within the list can only move a customer from a state in which an item has its
present click probability to one in which it has another, and by at most the probability of those clicks; an item never
gains more than from the group that suits it best; and fatigue only grows. In a group, an item is better replaced by an
unused one of more appeal, as long as no change of state can cost a whole click (`_can_reduce`). So only the best K
items of each group matter.

Shapes: B customers, N items, K slots, M candidates, W beginnings, S slots so far, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nextitem.data.shop.list_truth import click_probabilities, list_table, same_above
from nextitem.data.shop.truth import Bools, Floats, Ints
from nextitem.simulation.answers import ListProblem

WIDTH = 12  # beginnings that stay; wider searches of the shop gain less than 0.1% of a list's value
PROOF_WIDTHS = (12, 96, 768)  # for few items, of whose best list there shall be a proof
FEW_ITEMS = 32
MAX_CANDIDATES = 64
MAX_REPLACEMENTS = 32  # candidates that are tried in each slot of a list that was reached
MAX_ROUNDS = 4
FRONT = 256  # most promising items, among which candidates are looked for
CHUNK = 64  # customers that are searched at once
TOLERANCE = 1e-9  # clicks


@dataclass(frozen=True, eq=False)
class BestLists:
    """The best lists of some customers.

    Attributes:
        rows: rows of the items, [B, K]; -1: an empty slot.
        values: expected number of clicks, [B].
        bounds: largest expected number of clicks that a list can have, [B]; the values, if they are proven to be best.

    """

    rows: Ints
    values: Floats
    bounds: Floats

    @property
    def is_proven(self) -> Bools:
        """Whether each list is proven to be the best, [B]."""
        result: Bools = self.bounds <= self.values + TOLERANCE
        return result


def best_lists(problem: ListProblem, *, widths: tuple[int, ...] = ()) -> BestLists:
    """Return the best list of each customer.

    Args:
        problem: what decides the value of every list.
        widths: number of beginnings that stay in the first search, and in each further one of the customers whose list
            is not proven to be the best; (): by the number of items.

    """
    effects = problem.effects
    widths = widths or (PROOF_WIDTHS if problem.appeal.shape[1] <= FEW_ITEMS else (WIDTH,))
    size = min(len(effects.examination), problem.appeal.shape[1])
    if not effects.complements and not effects.fatigue:
        return _sorted_lists(problem, size)
    parts = [
        _searched(problem.select(np.arange(start, min(start + CHUNK, len(problem.appeal)))), size, widths)
        for start in range(0, len(problem.appeal), CHUNK)
    ]
    return BestLists(
        np.concatenate([part.rows for part in parts]) if parts else np.empty((0, size), np.int64),
        np.concatenate([part.values for part in parts]) if parts else np.empty(0),
        np.concatenate([part.bounds for part in parts]) if parts else np.empty(0),
    )


def list_values(problem: ListProblem, rows: Ints, *, customers: Ints | None = None) -> Floats:
    """Return the expected number of clicks of lists, [L].

    Args:
        problem: what decides the value of every list.
        rows: rows of the items, [L, K]; -1: an empty slot.
        customers: the customer of each list, by place in the problem, [L]; None: one list for each.

    """
    owners = np.arange(len(problem.before)) if customers is None else customers
    appeal = problem.appeal[owners[:, None], np.maximum(rows, 0)]
    table = list_table(
        appeal,
        rows,
        problem.groups[rows],
        gains=problem.gains,
        before=problem.before[owners],
        effects=problem.effects,
        can_click=np.isfinite(appeal),
    )
    result: Floats = click_probabilities(table, problem.effects.examination).sum(axis=1)
    return result


def _sorted_lists(problem: ListProblem, size: int) -> BestLists:
    """Return the lists that are sorted by click probability, for customers whom the items of a list do not change."""
    scores, looks = _first_logits(problem, np.arange(problem.appeal.shape[1])), problem.effects.examination
    order = np.argsort(-scores, axis=1, kind="stable")[:, :size]
    order = np.where(np.isfinite(np.take_along_axis(scores, order, axis=1)), order, -1)
    places = np.argsort(-np.array(looks[:size]), kind="stable")  # the best item comes where customers look most
    rows = np.empty_like(order)
    rows[:, places] = order
    values = list_values(problem, rows)
    return BestLists(rows, values, values)


def _first_logits(problem: ListProblem, rows: Ints) -> Floats:
    """Return the logits of items [M] or [B, M] right after each customer's last item before the list, [B, M]."""
    groups = problem.groups[rows]
    before = problem.before[:, None]
    gains = np.where(before >= 0, problem.gains[before, groups], 0.0)
    appeal = problem.appeal[:, rows] if rows.ndim == 1 else np.take_along_axis(problem.appeal, rows, axis=1)
    result: Floats = appeal + gains
    return result


def _searched(problem: ListProblem, size: int, widths: tuple[int, ...]) -> BestLists:
    candidates = _candidates(problem, size)
    result = _search(problem, candidates, size, widths[0])
    for width in widths[1:]:
        open_rows = np.flatnonzero(~result.is_proven)
        if not len(open_rows):
            break
        again = _search(problem.select(open_rows), candidates.select(open_rows), size, width)
        is_better = again.values > result.values[open_rows]
        result.rows[open_rows[is_better]] = again.rows[is_better]
        result.values[open_rows] = np.maximum(again.values, result.values[open_rows])
        bounds = np.minimum(again.bounds, result.bounds[open_rows])
        result.bounds[open_rows] = np.maximum(bounds, result.values[open_rows])
    return result


class _Candidates(NamedTuple):
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

    def select(self, rows: Ints) -> _Candidates:
        return _Candidates(*(column[rows] for column in self))


def _candidates(problem: ListProblem, size: int) -> _Candidates:
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
    num_items, count = hopes.shape[1], min(MAX_CANDIDATES, hopes.shape[1])
    front = min(FRONT, num_items)
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
    rest = _sigmoid(rest)
    rows = np.take_along_axis(order, places[:, :count], axis=1)
    is_candidate = np.isfinite(np.take_along_axis(hopes, places[:, :count], axis=1))
    appeal = np.where(is_candidate, np.take_along_axis(problem.appeal, rows, axis=1), -np.inf)
    of_rows, own = groups[rows], np.take_along_axis(top_gain, groups[rows], axis=1)
    # Of a click on an item h (at most as probable as its best state allows), an item i gains by their groups.
    best_click = np.zeros(present.shape)
    np.maximum.at(
        best_click, (np.arange(len(rows))[:, None], groups[None]), _sigmoid(problem.appeal + top_gain[:, groups])
    )
    rises = _sigmoid(appeal[:, None, :] + gains[:, of_rows].transpose(1, 0, 2)) - _sigmoid(appeal)[:, None, :]
    bonus = (best_click[:, :, None] * rises).max(axis=1)
    return _Candidates(rows, appeal, of_rows, own, bonus, rest)


def _can_reduce(gains: Floats, problem: ListProblem) -> bool:
    """Return whether one click is always worth more than what a change of state can cost in the slots below.

    The probabilities of two logits that differ by g differ by at most tanh(g / 4).
    """
    largest = max(float(gains.max(initial=0.0)), float(problem.gains.max(initial=0.0)))
    return bool(np.tanh(largest / 4) * sum(problem.effects.examination[1:]) < 1)


def _search(problem: ListProblem, candidates: _Candidates, size: int, width: int) -> BestLists:
    """Search the best list slot by slot, with `width` beginnings for each customer."""
    looks = np.array(problem.effects.examination)
    count, num_candidates = candidates.appeal.shape
    every = np.arange(count)[:, None]
    nodes = np.full((count, 1, 0), -1)  # places of the items among the candidates, [B, W, S]
    states = np.ones((count, 1, 1))  # probability that each slot was clicked last, [B, W, S + 1]
    values, discarded = np.zeros((count, 1)), np.full(count, -np.inf)
    for slot in range(size):
        logits = _node_logits(candidates, nodes, problem.effects.fatigue)  # [B, W, M]
        chance = _mixed_chance(problem, candidates, nodes, states, logits)  # [B, W, S + 1, M]
        mixed = (states[:, :, :, None] * chance).sum(axis=2)
        rest = _rest_bound(candidates, mixed, logits, looks, slot, size)
        totals = np.where(np.isfinite(logits), values[:, :, None] + looks[slot] * mixed, -np.inf)
        bounds = (totals + rest[:, :, None] if slot + 1 < size else totals).reshape(count, -1)
        order = np.argsort(-bounds, axis=1, kind="stable")
        stays = min(width if slot + 1 < size else 1, bounds.shape[1])
        if bounds.shape[1] > stays and slot + 1 < size:
            discarded = np.maximum(discarded, np.take_along_axis(bounds, order[:, stays : stays + 1], axis=1)[:, 0])
        # Beginnings that continue with an item that is no candidate.
        outside = values + looks[slot] * candidates.rest[:, None] + rest
        discarded = np.maximum(discarded, np.where(candidates.rest > 0, outside.max(axis=1), -np.inf))
        parents, items = np.divmod(order[:, :stays], num_candidates)
        is_open = np.isfinite(np.take_along_axis(bounds, order[:, :stays], axis=1))
        own = chance[every[:, :, None], parents[:, :, None], np.arange(slot + 1), items[:, :, None]]
        former = states[every, parents]
        step = np.where(is_open, looks[slot] * (former * own).sum(axis=2), 0.0)
        states = np.concatenate([former * (1 - looks[slot] * own), step[:, :, None]], axis=2)
        values = values[every, parents] + step
        nodes = np.concatenate([nodes[every, parents], np.where(is_open, items, -1)[:, :, None]], axis=2)
    best = nodes[:, 0]
    rows = np.where(best >= 0, np.take_along_axis(candidates.rows, np.maximum(best, 0), axis=1), -1)
    rows, best_values = _improved(problem, candidates, rows)
    return BestLists(rows, best_values, np.maximum(best_values, discarded))


def _improved(problem: ListProblem, candidates: _Candidates, rows: Ints) -> tuple[Ints, Floats]:
    """Return lists that no other item in a slot, and no exchange of two slots, makes better, and their values.

    A list that begins with an item for the sake of those below is not found by looking at the first slots alone.
    """
    size = rows.shape[1]
    places = np.arange(size)
    exchanges = np.array(
        [np.where(places == i, j, np.where(places == j, i, places)) for i in range(size) for j in range(i)]
    )
    rows, values = rows.copy(), list_values(problem, rows)
    others = np.where(np.isfinite(candidates.appeal), candidates.rows, -1)[:, :MAX_REPLACEMENTS]
    is_open = np.ones(len(rows), dtype=np.bool_)
    for _ in range(MAX_ROUNDS):
        who = np.flatnonzero(is_open)
        if not len(who):
            break
        replaced = np.repeat(rows[who, None, :], size * others.shape[1], axis=1).reshape(len(who), size, -1, size)
        replaced[:, places, :, places] = others[who]
        tried = replaced.reshape(len(who), -1, size)
        if len(exchanges):
            tried = np.concatenate([tried, rows[who][:, exchanges]], axis=1)
        count = tried.shape[1]
        new = list_values(problem, tried.reshape(-1, size), customers=np.repeat(who, count)).reshape(len(who), count)
        best = new.argmax(axis=1)
        gain = new[np.arange(len(who)), best] - values[who]
        is_better = gain > TOLERANCE
        rows[who[is_better]] = tried[np.flatnonzero(is_better), best[is_better]]
        values[who[is_better]] = new[np.flatnonzero(is_better), best[is_better]]
        is_open[who[~is_better]] = False
    return rows, values


def _best_sum(chances: Floats, looks: Floats) -> Floats:
    """Return the expected clicks if the items of the largest probabilities [..., M] fill slots in the best order."""
    count = min(len(looks), chances.shape[-1])
    if not count:
        return np.zeros(chances.shape[:-1])
    top = np.partition(chances, chances.shape[-1] - count, axis=-1)[..., chances.shape[-1] - count :]
    result: Floats = (np.sort(top, axis=-1) * np.sort(looks)[len(looks) - count :]).sum(axis=-1)
    return result


def _node_logits(candidates: _Candidates, nodes: Ints, fatigue: float) -> Floats:
    """Return the logits of the candidates after each beginning, with its fatigue, [B, W, M]; -inf: used already."""
    every = np.arange(len(nodes))[:, None, None]
    logits = np.repeat(candidates.appeal[:, None, :], nodes.shape[1], axis=1)
    for slot in range(nodes.shape[2]):
        places = nodes[:, :, slot]
        group = np.where(places >= 0, candidates.groups[every[:, :, 0], np.maximum(places, 0)], -1)
        logits -= fatigue * (candidates.groups[:, None, :] == group[:, :, None])
        used, beginnings = np.nonzero(places >= 0)
        logits[used, beginnings, places[used, beginnings]] = -np.inf
    return logits


def _mixed_chance(problem: ListProblem, candidates: _Candidates, nodes: Ints, states: Floats, logits: Floats) -> Floats:
    """Return the click probabilities of the candidates by the slot that was clicked last, [B, W, S + 1, M]."""
    every = np.arange(len(nodes))[:, None]
    chance = np.empty((*states.shape, logits.shape[2]))
    for state in range(states.shape[2]):
        if state == 0 or not problem.effects.complements:
            last = np.broadcast_to(problem.before[:, None], nodes.shape[:2])
        else:
            places = nodes[:, :, state - 1]
            last = np.where(places >= 0, candidates.groups[every, np.maximum(places, 0)], -1)
        gain = np.where(last[:, :, None] >= 0, problem.gains[last[:, :, None], candidates.groups[:, None, :]], 0.0)
        chance[:, :, state] = _sigmoid(logits + gain)
    return chance


def _rest_bound(candidates: _Candidates, mixed: Floats, logits: Floats, looks: Floats, slot: int, size: int) -> Floats:
    """Return the largest expected clicks of the slots below `slot` after each beginning, [B, W].

    `mixed [B, W, M]` are the present click probabilities of the candidates, if they are looked at.
    """
    if slot + 1 == size:
        return np.zeros(mixed.shape[:2])
    ceiling = _sigmoid(logits + candidates.largest[:, None, :])
    num_looks = looks[slot : size - 1].sum()  # at slots from this one on, before the last
    latest = np.minimum(ceiling, mixed + num_looks * candidates.bonus[:, None, :])
    outside = np.broadcast_to(candidates.rest[:, None, None], (*mixed.shape[:2], size - slot - 1))
    return _best_sum(np.concatenate([latest, outside], axis=2), looks[slot + 1 : size])


def _sigmoid(values: Floats) -> Floats:
    result: Floats = 1 / (1 + np.exp(-values))
    return result
