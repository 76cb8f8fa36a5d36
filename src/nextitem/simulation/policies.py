"""Policies that make the lists of simulated customers, and the sampling of lists with exact propensities.

Shapes: B customers of a batch, C customers of the world, K slots, N items, n items of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nextitem.data.shop.truth import Bools, Floats, Ints
from nextitem.simulation.answers import Answers, CustomerWorld
from nextitem.simulation.chance import uniform_numbers
from nextitem.simulation.optimum import BestLists, best_lists

EXPLORATION, RANDOM_LISTS = 5, 6  # purposes of chance
MIN_HEAD = 100  # items that a list is sampled from, if it has at most a quarter of this


@dataclass(frozen=True, eq=False)
class Visits:
    """Customers who ask for a list.

    Attributes:
        customers: numbers of the customers, [B].
        times: times in seconds, [B].
        numbers: number of each visit of its customer, from 1, [B].
        stock: which items there are, [N].

    """

    customers: Ints
    times: Floats
    numbers: Ints
    stock: Bools


class Policy(Protocol):
    """Whoever makes lists."""

    name: str

    def heads(self, visits: Visits, count: int) -> Ints:
        """Return the best `count` items of each customer, best first, [B, count] rows; -1: an empty place."""
        ...

    def observe(self, visits: Visits, rows: Ints, answers: Answers) -> None:
        """See what the customers did with the lists `rows` [B, K] that they were shown."""
        ...


class PopularItems:
    """The items that were clicked most in the log, the same for all."""

    name = "popularity"

    def __init__(self, counts: Ints) -> None:
        """Sort the items by their number of clicks, [N]."""
        self._order = np.argsort(-counts, kind="stable")

    def heads(self, visits: Visits, count: int) -> Ints:
        """Return the most popular items that there are; see Policy."""
        items = self._order[visits.stock[self._order]][:count]
        return np.broadcast_to(_filled(items, count), (len(visits.customers), count))

    def observe(self, visits: Visits, rows: Ints, answers: Answers) -> None:
        """Learn nothing from what the customers did."""


class RandomItems:
    """Items by chance, each as likely as the others."""

    name = "random"

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def heads(self, visits: Visits, count: int) -> Ints:
        """Return items by chance, all different; see Policy."""
        items = np.flatnonzero(visits.stock)
        chance = uniform_numbers(self._seed, RANDOM_LISTS, visits.customers, visits.numbers, count=len(items))
        size = min(count, len(items))
        places = np.argpartition(chance, size - 1, axis=1)[:, :size]
        places = np.take_along_axis(places, np.take_along_axis(chance, places, axis=1).argsort(axis=1), axis=1)
        return np.stack([_filled(row, count) for row in items[places]]) if size < count else items[places]

    def observe(self, visits: Visits, rows: Ints, answers: Answers) -> None:
        """Learn nothing from what the customers did."""


class OptimalLists:
    """The best list for the true state of each customer: expected clicks of the list, whatever comes later."""

    name = "optimal"

    def __init__(self, world: CustomerWorld) -> None:
        self._world = world
        self.latest: BestLists | None = None  # of the last visits, so that they need not be searched again

    def heads(self, visits: Visits, count: int) -> Ints:
        """Return the best lists; see Policy."""
        self.latest = best_lists(self._world.list_problem(visits.customers, visits.times))
        rows = self.latest.rows
        result = np.full((len(rows), count), -1)
        result[:, : rows.shape[1]] = rows[:, :count]
        return result

    def observe(self, visits: Visits, rows: Ints, answers: Answers) -> None:
        """Learn nothing: the truth is known."""


@dataclass(frozen=True, eq=False)
class Lists:
    """Lists of a policy.

    Attributes:
        rows: rows of the items, [B, K]; -1: an empty slot.
        propensities: probability with which each item was chosen for its slot, given the slots above, [B, K].

    """

    rows: Ints
    propensities: Floats


def make_lists(policy: Policy, visits: Visits, *, size: int, temperature: float, seed: int) -> Lists:
    """Return a list for each customer, the policy's own or one that is sampled from its head.

    Sampling is that of a server (serving.exploration): the item of rank r has the weight r**(-1 / temperature), and
    slots are filled without replacement in proportion to the weights.

    Args:
        policy: the policy.
        visits: the customers who ask.
        size: number of slots (K).
        temperature: how much is left to chance; 0: nothing.
        seed: seed of the world.

    """
    if policy.name == RandomItems.name:
        rows = policy.heads(visits, size)
        left = int(visits.stock.sum()) - np.arange(size)
        return Lists(rows, np.where(rows >= 0, 1 / np.maximum(left, 1), 1.0))
    if not temperature:
        rows = policy.heads(visits, size)
        return Lists(rows, np.ones(rows.shape))
    heads = policy.heads(visits, max(4 * size, MIN_HEAD))
    numbers = uniform_numbers(seed, EXPLORATION, visits.customers, visits.numbers, count=heads.shape[1])
    return sampled_lists(heads, numbers, size=size, temperature=temperature)


def sampled_lists(heads: Ints, numbers: Floats, *, size: int, temperature: float) -> Lists:
    """Return lists that are sampled from heads [B, n] (-1 after the last item), given uniform numbers [B, n]."""
    weights = np.where(heads >= 0, -np.log(np.arange(1, heads.shape[1] + 1)) / max(temperature, 1e-6), -np.inf)
    noise = -np.log(np.maximum(-np.log1p(-numbers), np.finfo(float).tiny))
    places = np.argsort(-(weights + noise), axis=1, kind="stable")[:, :size]
    rows, own = np.take_along_axis(heads, places, axis=1), np.take_along_axis(weights, places, axis=1)
    is_left = np.isfinite(weights)
    np.put_along_axis(is_left, places, False, axis=1)
    others = np.where(is_left, weights, -np.inf)
    with np.errstate(divide="ignore"):
        total = np.logaddexp.reduce(others, axis=1)[:, None]
    sums = np.logaddexp.accumulate(np.concatenate([total, own[:, ::-1]], axis=1), axis=1)[:, 1:][:, ::-1]
    propensities = np.ones(own.shape)
    is_item = rows >= 0
    propensities[is_item] = np.exp(own[is_item] - sums[is_item])
    return Lists(rows, propensities)


def _filled(items: Ints, count: int) -> Ints:
    """Return items [n] with -1 up to a length."""
    result = np.full(count, -1, dtype=np.int64)
    result[: len(items)] = items[:count]
    return result
