"""Customers of the simulated shop, who look at lists, click, buy and come back, by the ground truth of the shop.

A customer clicks what suits the true taste. Customers may also find items without a list, tastes and popularity may
drift, items may arrive and leave, and what is clicked may move the taste, what is shown again and again bore. Customers
depend on nothing but the seed and the lists: chance is a function of seed, customer and number of the visit. A customer
who visits a server, one who is shown the lists of a run, and one of the Gymnasium environment answer alike.

Shapes: B customers of a batch, C customers of the world, K slots, N items, M items of a question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from pydantic import Field

from nextitem.data.shop.catalog import CATEGORY_DEPARTMENT, FIRST_ITEM, FIRST_USER
from nextitem.data.shop.list_truth import click_gains, list_table
from nextitem.data.shop.shop import BRAND_MATCH, CONTINUE, STYLE_MATCH, Shop
from nextitem.data.shop.truth import (
    CLICK_BIAS,
    CLICK_INTEREST,
    POPULARITY_WEIGHT,
    START,
    YEAR,
    Bools,
    Floats,
    Ints,
    ShopTruth,
)
from nextitem.simulation.answers import DAY, HOUR, CustomerConfig, CustomerWorld, ListProblem
from nextitem.simulation.changes import TASTE_LENGTH, later_popularity, with_arrivals, with_drift
from nextitem.simulation.customers import Customer, Customers

__all__ = ["DAY", "HOUR", "Answer", "Customer", "Find", "Visit", "World", "WorldConfig"]

SECONDS_PER_SLOT = 9  # between the looks at two slots
INTEREST_PEAK = 3.0  # log interest of a customer who has clicked one department only: two standard deviations


class WorldConfig(CustomerConfig):
    """Settings of the customers of the simulated shop, and of what changes meanwhile."""

    new_share: float = Field(0.2, ge=0, le=1)
    """Share of the customers who are not in the shop's log. Of more customers than the shop has, several share the
    tastes of one, and all but one of them are new."""
    browsing: float = Field(0.0, ge=0, le=20)
    """Mean number of items that a customer finds at a visit without a list, by search or in a shop window."""
    drift: float = Field(0.0, ge=0, le=1)
    """Share of interests, tastes and popularity that changes during the simulation; 0: all stay as they are."""
    new_items: int = Field(0, ge=0, le=100_000)
    """Number of items that arrive during the simulation, at random times."""
    leaving_items: int = Field(0, ge=0, le=100_000)
    """Number of items of the shop that leave during the simulation, at random times."""
    influence: float = Field(0.0, ge=0, le=1)
    """Share of the way that taste and interest move towards each clicked item."""
    boredom: float = Field(0.0, ge=0, le=10)
    """Appeal, as a logit, that items lose for each recent look at an item of their category."""
    boredom_days: float = Field(7.0, gt=0)
    """Number of days in which boredom falls by a factor e."""


class Visit(NamedTuple):
    """A customer's visit: its time in seconds since 1970, number of the customer, and number of the visit from 1."""

    time: float
    customer: int
    number: int


@dataclass(frozen=True, eq=False)
class Answer:
    """What a customer did with a list.

    Attributes:
        clicks: whether each slot was clicked, [K] bool.
        purchases: whether each slot's item was bought, [K] bool; what is bought was clicked.
        click_probabilities: true probability of a click on each slot, position bias included, [K].
        purchase_probabilities: true probability of a purchase from each slot, [K].
        next_visit: the next visit; its time is inf if the customer has left for good.

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


class World(CustomerWorld):
    """The customers of one simulation of the shop, and what they know and own.

    Attributes:
        config: the settings.
        shop: the shop, with all items that arrive during the simulation.
        truth: its truth, with the drift of interests and tastes; popularity is that of the begin.
        customers: the customers.
        leaving_times: time at which each item leaves the shop, in seconds since 1970, [N]; inf: it stays.

    """

    def __init__(self, shop: Shop, config: WorldConfig | None = None) -> None:
        """Select the customers from those of the shop, and plan what changes."""
        self.config = config = config or WorldConfig()
        self.settings = config
        self.start = float(START + YEAR)
        self.end = self.start + config.days * DAY
        period = {"start": self.start, "end": self.end}
        rng = np.random.default_rng([config.seed, 4])
        num_items = shop.items.height
        self.shop = with_arrivals(shop, rng, count=config.new_items, **period) if config.new_items else shop
        self.truth = self.shop.truth
        self._later_popularity = self.truth.popularity
        if config.drift:
            self.truth = with_drift(self.truth, rng, share=config.drift, **period)
            self._later_popularity = later_popularity(self.truth, rng, share=config.drift)
        self.leaving_times = np.full(self.shop.items.height, np.inf)
        leaving = rng.permutation(num_items)[: min(config.leaving_items, num_items - 1)]
        self.leaving_times[leaving] = self.start + rng.random(len(leaving)) * (self.end - self.start)
        self._day, self._truth_of_day = -1, self.truth
        self.customers = self._customers()
        self.satisfaction, self.has_left = self.customers.satisfaction, self.customers.has_left
        self._ids = [str(item) for item in self.shop.items["item_id"].to_list()]
        self._rows = {item: row for row, item in enumerate(self._ids)}
        self._gains = click_gains(self.truth)

    @property
    def item_ids(self) -> list[str]:
        """Ids of the items, [N]."""
        return self._ids

    @property
    def titles(self) -> list[str]:
        """Titles of the items, [N]."""
        return self.shop.items["title"].to_list()

    @property
    def user_ids(self) -> list[str]:
        """Ids of the customers, [C]."""
        return self.customers.user_ids

    @property
    def groups(self) -> Ints:
        """Category of each item, [N]."""
        return self.truth.category

    def first_visits(self) -> list[Visit]:
        """Return the first visit of each customer: within the longest usual time between two visits."""
        return [Visit(float(time), number, 1) for number, time in enumerate(self.first_times())]

    def answer(self, visit: Visit, item_ids: Sequence[str]) -> Answer:
        """Return what the customer of a visit does with a list, and remember it.

        Args:
            visit: the visit.
            item_ids: ids of the items, best first, at most one for each slot; items that the shop does not have, or
                that the customer cannot or need not buy, are never clicked.

        """
        rows = np.array([[self._rows.get(item, -1) for item in item_ids]], dtype=np.int64)
        who = np.array([visit.customer])
        result = self.answers(who, np.array([visit.time]), np.array([visit.number]), rows)
        return Answer(
            result.clicks[0],
            result.purchases[0],
            result.click_probabilities[0],
            result.purchase_probabilities[0],
            Visit(float(result.next_times[0]), visit.customer, visit.number + 1),
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
            rows = rows[self._can_buy(np.array([visit.customer]), np.array([visit.time]), rows[None])[0]]
            if not len(rows):
                continue
            appeal = truth.affinity(customer.row, rows, int(visit.time)) + of_items[rows]
            if customer.last_item >= 0:
                appeal += STYLE_MATCH * (truth.style[rows] == truth.style[customer.last_item])
                appeal += BRAND_MATCH * (truth.brand[rows] == truth.brand[customer.last_item])
            row = int(rows[appeal.argmax()])
            is_purchase = bool(has_bought < truth.purchase_probability(customer.row, row, int(visit.time)))
            self._remember_items(np.array([visit.customer]), np.array([row]), np.array([is_purchase]))
            finds.append(Find(str(row + FIRST_ITEM), is_purchase))
        return finds

    def truth_at(self, time: float) -> ShopTruth:
        """Return the truth at a time; popularity moves from day to day."""
        day = int((time - self.start) // DAY)
        if self.config.drift and day != self._day:
            progress = float(self._progress(np.array([time]))[0])
            popularity = (1 - progress) * self.truth.popularity + progress * self._later_popularity
            self._truth_of_day, self._day = replace(self.truth, popularity=popularity), day
        return self._truth_of_day

    def stock(self, time: float) -> Bools:
        """Return which items are released and have not left, [N]."""
        result: Bools = (self.truth.released <= time) & (time < self.leaving_times)
        return result

    def former_tables(self) -> dict[str, pl.DataFrame]:
        """Return the tables of the shop, with user ids as text; see CustomerWorld."""
        as_text = pl.col("user_id").cast(pl.String)
        return {
            "interactions": self.shop.interactions.with_columns(as_text),
            "items": self.shop.items,
            "users": self.shop.users.with_columns(as_text),
        }

    def log_settings(self) -> dict[str, Any]:
        """Return the settings of the shop; see CustomerWorld."""
        return dict(self.shop.settings)

    def write_items(self, folder: str | Path, *, time: float) -> None:
        """Write the items that are released by a time into items.parquet of a folder, in one step."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        temporary = place / "items.tmp"
        self.shop.items.filter(pl.col("released") <= int(time)).write_parquet(temporary)
        temporary.replace(place / "items.parquet")

    def tastes(self, customer: Customer, time: float, item_ids: Sequence[str]) -> tuple[Floats, Floats]:
        """Return the probabilities of a click on each item if the customer looks at it, and of a purchase then, [M].

        Each item is seen alone, after the customer's last item.
        """
        rows = np.array([[self._rows.get(item, -1) for item in item_ids]], dtype=np.int64)
        who, when = np.array([customer.number]), np.array([time])
        problem_gain = np.zeros(len(item_ids))
        if customer.last_item >= 0:
            problem_gain = self._gains[self.groups[customer.last_item], self.groups[rows[0]]]
        taste = 1 / (1 + np.exp(-(self.appeals(who, when, rows)[0] + problem_gain)))
        can_buy = self._can_buy(who, when, rows)[0]
        return np.where(can_buy, taste, 0.0), self.desires(who, when, rows)[0]

    def appeals(self, customers: Ints, times: Floats, rows: Ints) -> Floats:
        """Return the logit of a click on items alone, without what is gained from the last item, [B, M].

        Args:
            customers: numbers of the customers, [B].
            times: times in seconds, [B].
            rows: rows of the items, [B, M], or [1, M] if they are the same for all.

        """
        users, seconds = self.customers.rows[customers][:, None], times.astype(np.int64)[:, None]
        affinity = self._moved_affinity(customers, times, rows)
        appeal: Floats = CLICK_BIAS + self.truth.click_appeal(users, rows, seconds, affinity=affinity)
        every = np.arange(len(customers))[:, None]
        if self.config.influence:
            shift = self.customers.interest_shift[customers]
            shift = shift - shift.mean(axis=1, keepdims=True)
            appeal = appeal + CLICK_INTEREST * shift[every, self.truth.department[rows]]
        if self.config.boredom:
            appeal = appeal - self.config.boredom * self._boredom(customers, times)[every, self.groups[rows]]
        return appeal

    def click_table(self, customers: Ints, times: Floats, rows: Ints) -> Floats:
        """Return the click table of a list for each customer, [B, K + 1, K]; see CustomerWorld."""
        return list_table(
            self.appeals(customers, times, rows),
            rows,
            self.groups[rows],
            gains=self._gains,
            before=self._groups_before(customers),
            effects=self.config.effects,
            can_click=self._can_buy(customers, times, rows),
        )

    def desires(self, customers: Ints, times: Floats, rows: Ints) -> Floats:
        """Return the probability that each clicked item is bought, [B, K]."""
        users, seconds = self.customers.rows[customers][:, None], times.astype(np.int64)[:, None]
        affinity = self._moved_affinity(customers, times, rows)
        return self.truth.purchase_probability(users, rows, seconds, affinity=affinity)

    def list_problem(self, customers: Ints, times: Floats) -> ListProblem:
        """Return what decides the value of every list for customers at times, [B] each."""
        rows = np.arange(len(self._ids))[None]
        appeal = np.where(self._can_buy(customers, times, rows), self.appeals(customers, times, rows), -np.inf)
        return ListProblem(appeal, self.groups, self._gains, self._groups_before(customers), self.config.effects)

    def _groups_before(self, customers: Ints) -> Ints:
        """Return the category of each customer's last item, [B]; -1: none."""
        last = self.customers.last_items[customers]
        return np.where(last >= 0, self.groups[last], -1)

    def _progress(self, times: Floats) -> Floats:
        """Return how far popularity has moved at times, 0 to 1, [B]: evenly, from day to day."""
        days = np.floor((times - self.start) / DAY)
        result: Floats = np.minimum(1.0, days * DAY / (self.end - self.start))
        return result

    def _moved_affinity(self, customers: Ints, times: Floats, rows: Ints) -> Floats:
        """Return what popularity and influence have added to the affinity of items, [B, M]."""
        result = np.zeros((len(customers), rows.shape[1]))
        if self.config.drift:
            change = (self._later_popularity - self.truth.popularity)[rows]
            result += POPULARITY_WEIGHT * self._progress(times)[:, None] * change
        if self.config.influence:
            shift = self.customers.taste_shift[customers]
            if len(rows) == 1:
                result += shift @ self.truth.vectors[rows[0]].T
            else:
                result += np.einsum("bv,bmv->bm", shift, self.truth.vectors[rows])
        return result

    def _boredom(self, customers: Ints, times: Floats) -> Floats:
        """Return the recent looks at each category, [B, categories], as they count at these times."""
        age = (times - self.customers.last_times[customers]) / DAY
        result: Floats = self.customers.boredom[customers] * np.exp(-age / self.config.boredom_days)[:, None]
        return result

    def _can_buy(self, customers: Ints, times: Floats, rows: Ints) -> Bools:
        """Return which items are in the shop, sold in the customer's country, and not owned, [B, M]."""
        country = self.truth.country[self.customers.rows[customers]][:, None]
        can_buy: Bools = (rows >= 0) & self.truth.sold_in[rows, country]
        can_buy &= (self.truth.released[rows] <= times[:, None]) & (times[:, None] < self.leaving_times[rows])
        can_buy &= ~self.customers.owned[customers[:, None], rows]
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

    def _remember(self, customers: Ints, times: Floats, rows: Ints, clicks: Bools, purchases: Bools) -> None:
        if self.config.boredom:
            self.customers.boredom[customers] = self._boredom(customers, times)
            looks = np.broadcast_to(self.config.examination[: rows.shape[1]], rows.shape) * (rows >= 0)
            np.add.at(self.customers.boredom, (customers[:, None], self.groups[rows]), looks)
        self.customers.last_times[customers] = times
        for slot in range(rows.shape[1]):
            hit = np.flatnonzero(clicks[:, slot])
            who, items = customers[hit], rows[hit, slot]
            if self.config.influence:
                self._influence(who, times[hit], items)
            self._remember_items(who, items, purchases[hit, slot])

    def _influence(self, customers: Ints, times: Floats, items: Ints) -> None:
        """Move the tastes of customers towards items, and their interests towards the departments of these."""
        state, share = self.customers, self.config.influence
        users, seconds = state.rows[customers], times.astype(np.int64)
        taste = self.truth.tastes(users, seconds) + state.taste_shift[customers]
        state.taste_shift[customers] += share * (TASTE_LENGTH * self.truth.vectors[items] - taste)
        interest = self.truth.interests(users, seconds) + state.interest_shift[customers]
        interest = interest - interest.mean(axis=1, keepdims=True)
        goal = np.zeros_like(interest)
        goal[np.arange(len(items)), self.truth.department[items]] = INTEREST_PEAK
        goal -= goal.mean(axis=1, keepdims=True)
        state.interest_shift[customers] += share * (goal - interest)

    def _remember_items(self, customers: Ints, items: Ints, is_purchase: Bools) -> None:
        self.customers.last_items[customers] = items
        is_durable = is_purchase & ~self.truth.consumable[items]
        self.customers.owned[customers[is_durable], items[is_durable]] = True

    def _customers(self) -> Customers:
        """Return the customers: a random selection of the shop's, of whom some are new to the server."""
        config, truth, num_users = self.config, self.truth, len(self.truth.country)
        rng = np.random.default_rng([config.seed, 0])
        rows = np.concatenate([rng.permutation(num_users) for _ in range(-(-config.customers // num_users))])
        rows = rows[: config.customers]
        is_new = rng.random(config.customers) < config.new_share
        is_new[num_users:] = True  # two customers with one id would share a history
        log = self.shop.interactions.filter(pl.col("action") != "return").sort("timestamp", maintain_order=True)
        last = log.group_by("user_id").agg(pl.col("item_id").last())
        last_of_users = np.full(num_users, -1)
        last_of_users[last["user_id"].to_numpy() - FIRST_USER] = last["item_id"].to_numpy() - FIRST_ITEM
        owned = np.zeros((len(rows), len(truth.category)), dtype=np.bool_)
        owners, goods = np.full(num_users, -1), truth.owned[:, :2]
        owners[rows[~is_new]] = np.flatnonzero(~is_new)
        goods = goods[owners[goods[:, 0]] >= 0]
        owned[owners[goods[:, 0]], goods[:, 1]] = True
        size = len(rows)
        return Customers(
            [
                f"new-{config.seed}-{number}" if new else str(row + FIRST_USER)
                for number, (row, new) in enumerate(zip(rows.tolist(), is_new.tolist(), strict=True))
            ],
            rows,
            is_new,
            np.where(is_new, -1, last_of_users[rows]),
            owned,
            taste_shift=np.zeros((size, truth.vectors.shape[1])),
            interest_shift=np.zeros((size, truth.interest_after.shape[1])),
            boredom=np.zeros((size, int(truth.category.max()) + 1)),
            last_times=np.zeros(size),
            satisfaction=np.full(size, np.nan),
            has_left=np.zeros(size, dtype=np.bool_),
        )


class EnvironmentConfig(WorldConfig):
    """Settings of the long-term environment: as those of World, but everything changes and everything has effects."""

    days: float = Field(60.0, gt=0, le=3650)
    """Duration in days of simulated time, from the end of the shop's log."""
    shortest_gap: float = Field(2.0, gt=0)
    """Mean number of days until the next visit of a customer who is wholly satisfied."""
    longest_gap: float = Field(14.0, gt=0)
    """Mean number of days until the next visit of a customer who is not satisfied at all."""
    satisfaction_memory: float = Field(0.5, ge=0, lt=1)
    """Weight of earlier lists in the satisfaction of a customer; 0: only the last list counts."""
    churn: float = Field(0.15, ge=0, le=1)
    """Probability that a customer who is not satisfied at all leaves for good after a visit."""
    list_complements: bool = True
    """Whether a click within a list makes items further down attractive that go with the clicked item."""
    list_fatigue: float = Field(0.5, ge=0, le=10)
    """Appeal, as a logit, that an item loses for each item of its category in a slot above."""
    drift: float = Field(0.3, ge=0, le=1)
    """Share of interests, tastes and popularity that changes during the simulation; 0: all stay as they are."""
    new_items: int = Field(200, ge=0, le=100_000)
    """Number of items that arrive during the simulation, at random times."""
    leaving_items: int = Field(200, ge=0, le=100_000)
    """Number of items of the shop that leave during the simulation, at random times."""
    influence: float = Field(0.05, ge=0, le=1)
    """Share of the way that taste and interest move towards each clicked item."""
    boredom: float = Field(0.15, ge=0, le=10)
    """Appeal, as a logit, that items lose for each recent look at an item of their category."""
