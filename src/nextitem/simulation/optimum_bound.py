"""A tight upper bound on the value of every list, by giving a list more freedom than it has.

Three freedoms make the best list easy. The list may choose each item after it is known what was clicked above; then the
best choice is a dynamic program over slot and last click. It may contain an item more than once, and more than one item
of a category at the same place in the order of its category, for a price each; the prices are those that make the bound
smallest (Lagrangian relaxation, improved by subgradients). Whatever the prices, no list is worth more than the bound.

Shapes: B customers, M candidates, L places within a category, O options (candidate and place), C states, K slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nextitem.data.shop.truth import Floats, Ints
from nextitem.simulation.answers import ListProblem
from nextitem.simulation.optimum_candidates import Candidates, sigmoid

PLACES = 3  # within a category; items further down count as if they were at the last place
ROUNDS = 60
MAX_STALLS = 6  # rounds without a smaller bound after which steps are halved


@dataclass(frozen=True, eq=False)
class Prices:
    """Prices of items and places, and what the freest list is worth with them.

    Attributes:
        items: price of each candidate, [B, M].
        places: price of each place within a category, [B, M * L], counted from the first candidate of the category.
        first: first candidate of the category of each candidate, [B, M].
        states: state after a click on each candidate, [B, M]; 0 is the state before the list.
        num_places: number of places within a category (L).
        worth: what the slots from each one on are worth in each state, [B, K + 1, C].
        bounds: upper bound on the value of every list, [B].

    """

    items: Floats
    places: Floats
    first: Ints
    states: Ints
    num_places: int
    worth: Floats
    bounds: Floats

    def unused(self, nodes: Ints) -> tuple[Floats, Floats]:
        """Return the prices that beginnings have not paid, [B, W], and what each candidate pays next, [B, W, M]."""
        count, width, num_slots = nodes.shape
        every = np.arange(count)[:, None]
        left = np.repeat((self.items.sum(axis=1) + self.places.sum(axis=1))[:, None], width, axis=1)
        places = np.zeros((count, width, self.items.shape[1]), dtype=np.int64)
        for slot in range(num_slots):
            item = nodes[:, :, slot]
            is_item, item = item >= 0, np.maximum(item, 0)
            own = np.take_along_axis(places, item[:, :, None], axis=2)[:, :, 0]
            left = left - np.where(is_item, self.items[every, item] + self._place_price(item, own), 0.0)
            is_kin = self.first[:, None, :] == self.first[every, item][:, :, None]
            places = places + (is_kin & is_item[:, :, None])
        candidates = np.broadcast_to(np.arange(self.items.shape[1]), places.shape)
        return left, self.items[:, None] + self._place_price(candidates, places)

    def select(self, rows: Ints) -> Prices:
        """Return the prices of some of the customers."""
        items, places, first, states = self.items[rows], self.places[rows], self.first[rows], self.states[rows]
        return Prices(items, places, first, states, self.num_places, self.worth[rows], self.bounds[rows])

    def _place_price(self, items: Ints, places: Ints) -> Floats:
        """Return the price of a place in the category of each item; the last place is free, as many may have it."""
        every = np.arange(len(items)).reshape(-1, *[1] * (items.ndim - 1))
        key = self.first[every, items] * self.num_places + np.minimum(places, self.num_places - 1)
        return np.where(places < self.num_places - 1, self.places[every, key], 0.0)


def best_prices(
    problem: ListProblem, candidates: Candidates, size: int, values: Floats, *, rounds: int = ROUNDS
) -> Prices:
    """Return the prices with the smallest bound that was reached.

    Args:
        problem: what decides the value of every list.
        candidates: the candidates of each customer.
        size: number of slots.
        values: values of the best lists that were reached, [B]; steps of the prices depend on them.
        rounds: number of improvements of the prices.

    """
    count, num_candidates = candidates.appeal.shape
    num_places = PLACES if problem.effects.fatigue else 1
    item = np.repeat(np.arange(num_candidates), num_places)  # of each option
    place = np.tile(np.arange(num_places), num_candidates)
    first = (candidates.groups[:, :, None] == candidates.groups[:, None, :]).argmax(axis=2)
    constraint = first[:, item] * num_places + place  # each category has each place once, [B, O]
    has_limit = place < num_places - 1
    chance, states = _chances(problem, candidates, item, place, first)
    after, looks = states[:, item], np.array(problem.effects.examination[:size])  # `after`: a click on each option
    prices, place_prices = np.zeros((count, num_candidates)), np.zeros((count, num_candidates * num_places))
    every = np.arange(count)[:, None]
    bounds, stalls, pace = np.full(count, np.inf), np.zeros(count, np.int64), np.ones(count)
    best_items, best_places = prices.copy(), place_prices.copy()
    best_worth = np.zeros((count, size + 1, chance.shape[1]))
    for _ in range(rounds):
        price = prices[:, item] + np.where(has_limit, place_prices[every, constraint], 0.0)
        worth, choice = _backward(chance, price, candidates.rest, looks, after)
        bound = worth[:, 0, 0] + prices.sum(axis=1) + place_prices.sum(axis=1)
        is_better = bound < bounds - 1e-9
        for target, new in ((best_items, prices), (best_places, place_prices), (best_worth, worth), (bounds, bound)):
            target[is_better] = new[is_better]
        stalls = np.where(is_better, 0, stalls + 1)
        pace = np.where(stalls >= MAX_STALLS, pace / 2, pace)
        stalls = np.where(stalls >= MAX_STALLS, 0, stalls)
        uses = _forward(chance, choice, looks, after)  # [B, O]
        excess, place_excess = -np.ones_like(prices), -np.ones_like(place_prices)
        np.add.at(excess, (every, item[None]), uses)
        np.add.at(place_excess, (every, constraint), np.where(has_limit, uses, 0.0))
        # A price that is 0 already cannot fall.
        excess = np.where((prices <= 0) & (excess < 0), 0.0, excess)
        place_excess = np.where((place_prices <= 0) & (place_excess < 0), 0.0, place_excess)
        length = (excess**2).sum(axis=1) + (place_excess**2).sum(axis=1)
        step = pace * np.maximum(bound - values, 0) / np.maximum(length, 1e-12)
        prices = np.maximum(0, prices + step[:, None] * excess)
        place_prices = np.maximum(0, place_prices + step[:, None] * place_excess)
    return Prices(best_items, best_places, first, states, num_places, best_worth, bounds)


def _chances(problem: ListProblem, candidates: Candidates, item: Ints, place: Ints, first: Ints) -> tuple[Floats, Ints]:
    """Return the click probability of each option in each state, [B, C, O], and the state after each candidate, [B, M].

    State 0 is that before the list. After a click, the state is the category of the item.
    """
    logits = candidates.appeal[:, item] - problem.effects.fatigue * place
    groups = candidates.groups[:, item]
    before = problem.before[:, None]
    gain = np.where(before >= 0, problem.gains[before, groups], 0.0)[:, None]
    num_groups = len(problem.gains)
    if not problem.effects.complements:
        states = np.zeros_like(first)
    elif num_groups <= first.shape[1]:
        states = 1 + candidates.groups
        last = np.arange(num_groups)[None, :, None]
        gain = np.concatenate([gain, problem.gains[last, groups[:, None, :]]], axis=1)
    else:
        states = 1 + first
        gain = np.concatenate([gain, problem.gains[candidates.groups[:, :, None], groups[:, None, :]]], axis=1)
    return sigmoid(logits[:, None] + gain), states


def _backward(chance: Floats, price: Floats, rest: Floats, looks: Floats, after: Ints) -> tuple[Floats, Ints]:
    """Return what the freest list is worth from each slot on, [B, K + 1, C], and its options, [B, K, C].

    Option -1 is an item that is no candidate, or an empty slot.
    """
    count, num_states = chance.shape[:2]
    every = np.arange(count)[:, None]
    worth = np.zeros((count, len(looks) + 1, num_states))
    choices = np.empty((count, len(looks), num_states), dtype=np.int64)
    for slot in range(len(looks) - 1, -1, -1):
        later = worth[:, slot + 1]
        change = 1 + later[every, after][:, None, :] - later[:, :, None]  # what a click changes
        gains = looks[slot] * chance * change - price[:, None]
        choice = gains.argmax(axis=2)
        best = np.take_along_axis(gains, choice[:, :, None], axis=2)[:, :, 0]
        outside = looks[slot] * rest[:, None] * (1 + later.max(axis=1, keepdims=True) - later)
        choices[:, slot] = np.where(np.maximum(outside, 0) > best, -1, choice)
        worth[:, slot] = later + np.maximum(np.maximum(best, outside), 0)
    return worth, choices


def _forward(chance: Floats, choices: Ints, looks: Floats, after: Ints) -> Floats:
    """Return the expected number of uses of each option, [B, O]."""
    count, num_states, num_options = chance.shape
    every, states = np.arange(count)[:, None], np.arange(num_states)[None]
    share = np.zeros((count, num_states))
    share[:, 0] = 1.0
    uses = np.zeros((count, num_options))
    for slot in range(len(looks)):
        option = choices[:, slot]
        is_candidate = option >= 0
        option = np.maximum(option, 0)
        np.add.at(uses, (every, option), np.where(is_candidate, share, 0.0))
        moved = np.where(is_candidate, looks[slot] * share * chance[every, states, option], 0.0)
        share = share - moved
        np.add.at(share, (every, after[every, option]), moved)
    return uses
