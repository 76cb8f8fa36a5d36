"""The best list for the true state of each customer, with a bound on what a better one could be worth, or a proof.

The value of a list is its expected number of clicks. Without effects within a list, the best list is sorted by appeal.
With them, lists are searched slot by slot: of all beginnings, the most promising stay, and every other is remembered by
an upper bound on the value of its completions. If no such bound exceeds the best list that was reached, this list is
proven to be the best. What remains open is returned as a bound: no list is worth more.

`best_lists` is fast, and its bound is loose: clicks within the list can only move a customer from a state in which an
item has its present click probability to one in which it has another, and by at most the probability of those clicks;
an item never gains more than from the group that suits it best; fatigue only grows. `proven_lists` searches wider, with
tight bounds (simulation.optimum_bound), and so closes most gaps.

Shapes: B customers, N items, K slots, M candidates, W beginnings, S slots so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nextitem.data.shop.list_truth import click_probabilities, list_table
from nextitem.data.shop.truth import Bools, Floats, Ints
from nextitem.simulation.answers import ListProblem
from nextitem.simulation.optimum_bound import Prices, best_prices
from nextitem.simulation.optimum_candidates import MAX_CANDIDATES, Candidates, candidates_of, sigmoid

WIDTH = 12  # beginnings that stay; wider searches of the shop gain less than 0.1% of a list's value
PROOF_WIDTHS = (12, 96, 768)  # if there shall be a proof, as for few items
FEW_ITEMS = 32
MAX_REPLACEMENTS = 32  # candidates that are tried in each slot of a list that was reached
MAX_ROUNDS = 4
CHUNK, PROOF_CHUNK = 64, 8  # customers that are searched at once
PROOF_CANDIDATES = 400
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


def best_lists(
    problem: ListProblem, *, widths: tuple[int, ...] = (), max_candidates: int = MAX_CANDIDATES
) -> BestLists:
    """Return the best list of each customer.

    Args:
        problem: what decides the value of every list.
        widths: number of beginnings that stay in the first search, and in each further one of the customers whose list
            is not proven to be the best; (): by the number of items. `proven_lists` spends more.
        max_candidates: number of the most promising items of which lists are composed.

    """
    effects = problem.effects
    widths = widths or (PROOF_WIDTHS if problem.appeal.shape[1] <= FEW_ITEMS else (WIDTH,))
    size = min(len(effects.examination), problem.appeal.shape[1])
    if not effects.complements and not effects.fatigue:
        return _sorted_lists(problem, size)
    chunk = CHUNK if len(widths) == 1 else PROOF_CHUNK
    parts = [
        _searched(
            problem.select(np.arange(start, min(start + chunk, len(problem.appeal)))), size, widths, max_candidates
        )
        for start in range(0, len(problem.appeal), chunk)
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


def proven_lists(problem: ListProblem) -> BestLists:
    """Return the best list of each customer with a proof for as many as half a second of one core for each allows."""
    return best_lists(problem, widths=PROOF_WIDTHS, max_candidates=PROOF_CANDIDATES)


def _searched(problem: ListProblem, size: int, widths: tuple[int, ...], max_candidates: int) -> BestLists:
    """Search with each width, as long as customers have no proof."""
    candidates = candidates_of(problem, size, max_candidates)
    result = _search(problem, candidates, size, widths[0])
    prices = None
    for width in widths[1:]:
        open_rows = np.flatnonzero(~result.is_proven)
        if not len(open_rows):
            break
        if prices is None:
            priced_rows = open_rows
            parts = problem.select(open_rows), candidates.select(open_rows)
            prices = best_prices(*parts, size, result.values[open_rows])
            bounds = np.minimum(result.bounds[open_rows], prices.bounds)
            result.bounds[open_rows] = np.maximum(bounds, result.values[open_rows])
        own = prices.select(np.searchsorted(priced_rows, open_rows))
        again = _search(problem.select(open_rows), candidates.select(open_rows), size, width, own)
        is_better = again.values > result.values[open_rows]
        result.rows[open_rows[is_better]] = again.rows[is_better]
        result.values[open_rows] = np.maximum(again.values, result.values[open_rows])
        bounds = np.minimum(again.bounds, result.bounds[open_rows])
        result.bounds[open_rows] = np.maximum(bounds, result.values[open_rows])
    return result


def _search(
    problem: ListProblem, candidates: Candidates, size: int, width: int, prices: Prices | None = None
) -> BestLists:
    """Search the best list slot by slot, with `width` beginnings for each customer, and tighter bounds if priced."""
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
        bounds = totals + rest[:, :, None]
        if prices is not None:
            bounds = np.minimum(bounds, totals + _priced_rest(prices, nodes, states, chance, looks, slot))
        bounds = (bounds if slot + 1 < size else totals).reshape(count, -1)
        order = np.argsort(-bounds, axis=1, kind="stable")
        stays = min(width if slot + 1 < size else 1, bounds.shape[1])
        if bounds.shape[1] > stays and slot + 1 < size:
            discarded = np.maximum(discarded, np.take_along_axis(bounds, order[:, stays : stays + 1], axis=1)[:, 0])
        # Beginnings that continue with an item that is no candidate.
        outside = values + looks[slot] * candidates.rest[:, None] + rest
        if prices is not None:
            outside = np.minimum(outside, values + _priced_outside(prices, candidates, nodes, states, looks, slot))
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


def _priced_rest(prices: Prices, nodes: Ints, states: Floats, chance: Floats, looks: Floats, slot: int) -> Floats:
    """Return the largest expected clicks of the slots below `slot` after each beginning and item, [B, W, M]."""
    every = np.arange(len(nodes))[:, None, None]
    later = prices.worth[:, slot + 1]
    weighted = states * later[every, _states_of(prices, nodes)]  # [B, W, S + 1]
    stays = weighted.sum(axis=2)[:, :, None] - looks[slot] * (weighted[:, :, :, None] * chance).sum(axis=2)
    moves = looks[slot] * (states[:, :, :, None] * chance).sum(axis=2) * later[every[:, :, 0], prices.states][:, None]
    left, next_price = prices.unused(nodes)
    result: Floats = stays + moves + left[:, :, None] - next_price
    return result


def _states_of(prices: Prices, nodes: Ints) -> Ints:
    """Return the states of beginnings whose last click is on none of their slots, or on each, [B, W, S + 1]."""
    every = np.arange(len(nodes))[:, None, None]
    after = np.where(nodes >= 0, prices.states[every, np.maximum(nodes, 0)], 0)
    return np.concatenate([np.zeros((*nodes.shape[:2], 1), np.int64), after], axis=2)


def _priced_outside(
    prices: Prices, candidates: Candidates, nodes: Ints, states: Floats, looks: Floats, slot: int
) -> Floats:
    """Return the largest expected clicks of `slot` and those below with an item that is no candidate, [B, W]."""
    every = np.arange(len(nodes))[:, None, None]
    later = prices.worth[:, slot + 1]
    stays = (states * later[every, _states_of(prices, nodes)]).sum(axis=2)
    click = looks[slot] * candidates.rest * (1 + later.max(axis=1))
    result: Floats = stays + click[:, None] + prices.unused(nodes)[0]
    return result


def _improved(problem: ListProblem, candidates: Candidates, rows: Ints) -> tuple[Ints, Floats]:
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


def _node_logits(candidates: Candidates, nodes: Ints, fatigue: float) -> Floats:
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


def _mixed_chance(problem: ListProblem, candidates: Candidates, nodes: Ints, states: Floats, logits: Floats) -> Floats:
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
        chance[:, :, state] = sigmoid(logits + gain)
    return chance


def _rest_bound(candidates: Candidates, mixed: Floats, logits: Floats, looks: Floats, slot: int, size: int) -> Floats:
    """Return the largest expected clicks of the slots below `slot` after each beginning, [B, W].

    `mixed [B, W, M]` are the present click probabilities of the candidates, if they are looked at.
    """
    if slot + 1 == size:
        return np.zeros(mixed.shape[:2])
    ceiling = sigmoid(logits + candidates.largest[:, None, :])
    num_looks = looks[slot : size - 1].sum()  # at slots from this one on, before the last
    latest = np.minimum(ceiling, mixed + num_looks * candidates.bonus[:, None, :])
    outside = np.broadcast_to(candidates.rest[:, None, None], (*mixed.shape[:2], size - slot - 1))
    return _best_sum(np.concatenate([latest, outside], axis=2), looks[slot + 1 : size])
