"""Customers who look at lists, click, buy and come back, by the ground truth of the simulated shop.

A customer looks at each slot with a probability that falls from slot to slot (the position bias), clicks what suits the
true taste, and may buy it. The better a list, the sooner the customer comes back. Customers may also find items without
a list, tastes and popularity may drift, and items may arrive. Customers depend on nothing but the seed and the lists:
chance is a function of seed, customer and number of the visit.
Shapes: K slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from pydantic import Field, field_validator

from nextitem.core.config import Config
from nextitem.data.shop.catalog import CATEGORY_DEPARTMENT, FIRST_ITEM, FIRST_USER
from nextitem.data.shop.shop import BRAND_MATCH, CONTINUE, STYLE_MATCH, Shop
from nextitem.data.shop.truth import EXAMINATION, START, YEAR, Bools, Floats, Ints, ShopTruth
from nextitem.simulation.changes import later_popularity, with_arrivals, with_drift

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
    browsing: float = Field(0.0, ge=0, le=20)
    """Mean number of items that a customer finds at a visit without a list, by search or in a shop window."""
    drift: float = Field(0.0, ge=0, le=1)
    """Share of interests, tastes and popularity that changes during the simulation; 0: all stay as they are."""
    new_items: int = Field(0, ge=0, le=100_000)
    """Number of items that arrive during the simulation, at random times."""

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


class Find(NamedTuple):
    """An item that a customer found without a list, and whether it was bought; otherwise it was clicked."""

    item_id: str
    is_purchase: bool


class World:
    """The customers of one simulation and what they know and own.

    Attributes:
        config: the settings.
        shop: the shop, with all items that arrive during the simulation.
        truth: its truth, with the drift of interests and tastes; popularity is that of the begin.
        start: begin of the simulation, in seconds since 1970.
        end: end of the simulation.
        customers: the customers.

    """

    def __init__(self, shop: Shop, config: WorldConfig | None = None) -> None:
        """Select the customers from those of the shop, and plan what changes."""
        self.config = config = config or WorldConfig()
        self.start = float(START + YEAR)
        self.end = self.start + config.days * DAY
        period = {"start": self.start, "end": self.end}
        rng = np.random.default_rng([config.seed, 4])
        self.shop = with_arrivals(shop, rng, count=config.new_items, **period) if config.new_items else shop
        self.truth = self.shop.truth
        self._later_popularity = self.truth.popularity
        if config.drift:
            self.truth = with_drift(self.truth, rng, share=config.drift, **period)
            self._later_popularity = later_popularity(self.truth, rng, share=config.drift)
        self._day, self._truth_of_day = -1, self.truth
        self.customers = self._customers()
        self._rows = {str(item): row for row, item in enumerate(self.shop.items["item_id"].to_list())}
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
        taste, desire = self.tastes(customer, visit.time, item_ids)
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

    def browse(self, visit: Visit) -> list[Find]:
        """Return what the customer of a visit finds without a list, after looking at one, and remember it.

        As in the sessions of the shop's log, the last item leads on to a category that goes with it, or an interest
        does to another; of the items there, style, brand and taste select one.
        """
        customer = self.customers[visit.customer]
        rng = np.random.default_rng([self.config.seed, 3, visit.customer, visit.number])
        finds = []
        for _ in range(int(rng.poisson(self.config.browsing))):
            continues, has_bought, of_categories = rng.random(), rng.random(), rng.gumbel(size=len(CATEGORY_DEPARTMENT))
            of_items = rng.gumbel(size=self.shop.items.height)
            truth = self.truth_at(visit.time)
            rows = np.flatnonzero(truth.category == self._category(customer, visit.time, continues, of_categories))
            rows = rows[self._can_buy(customer, visit.time, rows)]
            if not len(rows):
                continue
            appeal = truth.affinity(customer.row, rows, int(visit.time)) + of_items[rows]
            if customer.last_item >= 0:
                appeal += STYLE_MATCH * (truth.style[rows] == truth.style[customer.last_item])
                appeal += BRAND_MATCH * (truth.brand[rows] == truth.brand[customer.last_item])
            row = int(rows[appeal.argmax()])
            is_purchase = bool(has_bought < truth.purchase_probability(customer.row, row, int(visit.time)))
            self._remember_item(customer, row, is_purchase=is_purchase)
            finds.append(Find(str(row + FIRST_ITEM), is_purchase))
        return finds

    def truth_at(self, time: float) -> ShopTruth:
        """Return the truth at a time; popularity moves from day to day."""
        day = int((time - self.start) // DAY)
        if self.config.drift and day != self._day:
            progress = min(1.0, day * DAY / (self.end - self.start))
            popularity = (1 - progress) * self.truth.popularity + progress * self._later_popularity
            self._truth_of_day, self._day = replace(self.truth, popularity=popularity), day
        return self._truth_of_day

    def write_items(self, folder: str | Path, *, time: float) -> None:
        """Write the items that are released by a time into items.parquet of a folder, in one step."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        temporary = place / "items.tmp"
        self.shop.items.filter(pl.col("released") <= int(time)).write_parquet(temporary)
        temporary.replace(place / "items.parquet")

    def mean_gap(self, appeal: float) -> float:
        """Return the mean number of days until the next visit, after a list with this probability of any click."""
        return float(self.config.longest_gap ** (1 - appeal) * self.config.shortest_gap**appeal)

    def tastes(self, customer: Customer, time: float, item_ids: Sequence[str]) -> tuple[Floats, Floats]:
        """Return the probabilities of a click on each item if the customer looks at it, and of a purchase then, [K]."""
        rows = np.array([self._rows.get(item, -1) for item in item_ids], dtype=np.int64)
        truth = self.truth_at(time)
        can_buy = (rows >= 0) & self._can_buy(customer, time, rows)
        when = np.full(len(rows), int(time))
        taste = truth.click_probability(
            np.full(len(rows), customer.row), rows, when, slots=1, last_items=customer.last_item
        )
        desire = truth.purchase_probability(np.full(len(rows), customer.row), rows, when)
        return np.where(can_buy, taste / EXAMINATION[0], 0.0), desire

    def _can_buy(self, customer: Customer, time: float, rows: Ints) -> Bools:
        """Return which items are released, sold in the customer's country, and not owned, bool [rows]."""
        can_buy: Bools = self.truth.sold_in[rows, self.truth.country[customer.row]]
        can_buy = can_buy & (self.truth.released[rows] <= time)
        can_buy &= np.array([row not in customer.owned_items for row in rows.tolist()], dtype=np.bool_)
        return can_buy

    def _category(self, customer: Customer, time: float, continues: float, of_categories: Floats) -> int:
        """Return the category that a customer looks at, from a uniform number and Gumbel noise of the categories."""
        if customer.last_item >= 0 and continues < CONTINUE:
            following = self.truth.complements[self.truth.category[customer.last_item]]
            if following.any():
                with np.errstate(divide="ignore"):
                    return int((np.log(following) + of_categories).argmax())
        interest = self.truth.interests(customer.row, int(time))[CATEGORY_DEPARTMENT]
        return int((interest + of_categories).argmax())

    def _remember(self, customer: Customer, item_ids: Sequence[str], clicks: Bools, purchases: Bools) -> None:
        for slot in np.flatnonzero(clicks).tolist():
            self._remember_item(customer, self._rows[item_ids[slot]], is_purchase=bool(purchases[slot]))

    def _remember_item(self, customer: Customer, row: int, *, is_purchase: bool) -> None:
        customer.last_item = row
        if is_purchase and not self.truth.consumable[row]:
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
