"""Customers who look at lists, click, buy and come back, by the ground truth of the simulated shop.

A customer looks at each slot with a probability that falls from slot to slot (the position bias), clicks what suits the
true taste, and may buy it. The better a list, the sooner the customer comes back. Customers depend on nothing but the
seed and the lists: chance is a function of seed, customer and number of the visit.
Shapes: K slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import polars as pl
from pydantic import Field, field_validator

from nextitem.core.config import Config
from nextitem.data.shop.catalog import FIRST_ITEM, FIRST_USER
from nextitem.data.shop.shop import Shop
from nextitem.data.shop.truth import EXAMINATION, START, YEAR, Bools, Floats

HOUR = 3_600  # seconds
DAY = 24 * HOUR
SECONDS_PER_SLOT = 9  # between the looks at two slots


class WorldConfig(Config):
    """Settings of the customers who visit a server."""

    customers: int = Field(1000, ge=1)
    """Number of customers. If there are more than the shop has, several share the tastes of one."""
    days: float = Field(30.0, gt=0, le=3650)
    """Duration in days of simulated time, from the end of the shop's log."""
    seed: int = Field(0, ge=0)
    """Seed of all chance."""
    new_share: float = Field(0.2, ge=0, le=1)
    """Share of the customers who are not in the shop's log."""
    examination: tuple[float, ...] = Field(tuple(EXAMINATION.tolist()), min_length=1, max_length=1000)
    """Probability that a customer looks at each slot; lists have as many items."""
    shortest_gap: float = Field(1.0, gt=0)
    """Mean number of days until the next visit after a list that is sure to be clicked."""
    longest_gap: float = Field(8.0, gt=0)
    """Mean number of days until the next visit after a list without any appeal."""

    @field_validator("examination")
    @classmethod
    def _are_probabilities(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= value <= 1 for value in values):
            raise ValueError("probabilities are between 0 and 1")
        return values


class Visit(NamedTuple):
    """A customer's visit: its time in seconds since 1970, number of the customer, and number of the visit from 1."""

    time: float
    customer: int
    number: int


@dataclass
class Customer:
    """One customer of the simulation: tastes, and what was clicked last and is owned.

    Attributes:
        user_id: id that the server sees.
        row: row of the shop's users whose tastes the customer has.
        is_new: whether the shop's log does not contain the customer.
        last_item: row of the last clicked item; -1: none.
        owned_items: rows of the durable goods that the customer has, which are not bought again.

    """

    user_id: str
    row: int
    is_new: bool
    last_item: int = -1
    owned_items: set[int] = field(default_factory=set)


@dataclass(frozen=True, eq=False)
class Answer:
    """What a customer did with a list.

    Attributes:
        clicks: whether each slot was clicked, [K] bool.
        purchases: whether each slot's item was bought, [K] bool; what is bought was clicked.
        click_probabilities: true probability of a click on each slot, position bias included, [K].
        purchase_probabilities: true probability of a purchase from each slot, [K].
        next_visit: the next visit.

    """

    clicks: Bools
    purchases: Bools
    click_probabilities: Floats
    purchase_probabilities: Floats
    next_visit: Visit


class World:
    """The customers of one simulation and what they know and own."""

    def __init__(self, shop: Shop, config: WorldConfig | None = None) -> None:
        """Select the customers from those of the shop."""
        self.config = config or WorldConfig()
        self.shop, self.truth = shop, shop.truth
        self.start = float(START + YEAR)
        self.end = self.start + self.config.days * DAY
        self.customers = self._customers()
        self._rows = {str(item): row for row, item in enumerate(shop.items["item_id"].to_list())}
        self._examination = np.array(self.config.examination)

    def first_visits(self) -> list[Visit]:
        """Return the first visit of each customer: within the longest usual time between two visits."""
        chances = np.random.default_rng([self.config.seed, 1]).random(len(self.customers))
        times = self.start + chances * self.config.longest_gap * DAY
        return [Visit(float(time), number, 1) for number, time in enumerate(times)]

    def answer(self, visit: Visit, item_ids: Sequence[str]) -> Answer:
        """Return what the customer of a visit does with a list, and remember it.

        Args:
            visit: the visit.
            item_ids: ids of the items, best first, at most one for each slot; items that the shop does not have, or
                that the customer cannot or need not buy, are never clicked.

        """
        customer, size = self.customers[visit.customer], len(item_ids)
        assert size <= len(self._examination), "a list has at most as many items as there are slots"
        rng = np.random.default_rng([self.config.seed, 2, visit.customer, visit.number])
        looks, click_chances, purchase_chances = rng.random((3, len(self._examination)))[:, :size]
        patience = float(rng.standard_exponential())
        taste, desire = self._tastes(customer, visit.time, item_ids)
        clicks: Bools = (looks < self._examination[:size]) & (click_chances < taste)
        purchases: Bools = clicks & (purchase_chances < desire)
        self._remember(customer, item_ids, clicks, purchases)
        click_probabilities: Floats = self._examination[:size] * taste
        appeal = 1 - float(np.prod(1 - click_probabilities))
        gap = patience * self.mean_gap(appeal) * DAY
        return Answer(
            clicks,
            purchases,
            click_probabilities,
            click_probabilities * desire,
            Visit(visit.time + max(HOUR, gap), visit.customer, visit.number + 1),
        )

    def mean_gap(self, appeal: float) -> float:
        """Return the mean number of days until the next visit, after a list with this probability of any click."""
        return float(self.config.longest_gap ** (1 - appeal) * self.config.shortest_gap**appeal)

    def _tastes(self, customer: Customer, time: float, item_ids: Sequence[str]) -> tuple[Floats, Floats]:
        """Return the probabilities of a click on each item if the customer looks at it, and of a purchase then, [K]."""
        rows = np.array([self._rows.get(item, -1) for item in item_ids], dtype=np.int64)
        can_buy = rows >= 0
        can_buy &= self.truth.sold_in[rows, self.truth.country[customer.row]] & (self.truth.released[rows] <= time)
        can_buy &= np.array([row not in customer.owned_items for row in rows.tolist()], dtype=np.bool_)
        when = np.full(len(rows), int(time))
        taste = self.truth.click_probability(
            np.full(len(rows), customer.row), rows, when, slots=1, last_items=customer.last_item
        )
        desire = self.truth.purchase_probability(np.full(len(rows), customer.row), rows, when)
        return np.where(can_buy, taste / EXAMINATION[0], 0.0), desire

    def _remember(self, customer: Customer, item_ids: Sequence[str], clicks: Bools, purchases: Bools) -> None:
        for slot in np.flatnonzero(clicks).tolist():
            row = self._rows[item_ids[slot]]
            customer.last_item = row
            if purchases[slot] and not self.truth.consumable[row]:
                customer.owned_items.add(row)

    def _customers(self) -> list[Customer]:
        """Return the customers: a random selection of the shop's, of whom some are new to the server."""
        config, num_users = self.config, len(self.truth.country)
        rng = np.random.default_rng([config.seed, 0])
        rows = np.concatenate([rng.permutation(num_users) for _ in range(-(-config.customers // num_users))])
        is_new = rng.random(config.customers) < config.new_share
        is_new[num_users:] = True  # two customers with one id would share a history
        log = self.shop.interactions.filter(pl.col("action") != "return").sort("timestamp", maintain_order=True)
        last_items = dict(log.group_by("user_id").agg(pl.col("item_id").last()).iter_rows())
        owned = self.truth.owned
        result = []
        for number, row in enumerate(rows[: config.customers].tolist()):
            if is_new[number]:
                result.append(Customer(f"new-{config.seed}-{number}", row, True))
                continue
            first, last = np.searchsorted(owned[:, 0], [row, row + 1])
            last_item = int(last_items.get(row + FIRST_USER, FIRST_ITEM - 1)) - FIRST_ITEM
            goods = {int(item) for item in owned[first:last, 1]}
            result.append(Customer(str(row + FIRST_USER), row, False, last_item, goods))
        return result
