"""What customers do with lists and when they come back: the part that all simulated worlds share.

A customer looks at slots with a probability that falls from slot to slot, clicks what appeals, may buy it, becomes more
or less satisfied, and comes back the sooner the more satisfied, or leaves for good. Worlds differ in what appeals to a
customer and in what a customer remembers. All customers of a batch answer at once.

Shapes: B customers of a batch, C customers of the world, K slots, N items, G groups of items.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field, field_validator

from nextitem.core.config import Config
from nextitem.data.shop.list_truth import ListEffects, any_click_probability, click_probabilities, sample_clicks
from nextitem.data.shop.truth import EXAMINATION, Bools, Floats, Ints
from nextitem.simulation.chance import uniform_numbers

HOUR = 3_600  # seconds
DAY = 24 * HOUR
FIRST_VISITS, LISTS = 1, 2  # purposes of chance


class CustomerConfig(Config):
    """Settings of customers, in any world."""

    customers: int = Field(1000, ge=1)
    """Number of customers."""
    days: float = Field(30.0, gt=0, le=3650)
    """Duration in days of simulated time, from the end of the log."""
    seed: int = Field(0, ge=0)
    """Seed of all chance."""
    examination: tuple[float, ...] = Field(tuple(EXAMINATION.tolist()), min_length=1, max_length=1000)
    """Probability that a customer looks at each slot; lists have as many items."""
    shortest_gap: float = Field(1.0, gt=0)
    """Mean number of days until the next visit of a customer who is wholly satisfied."""
    longest_gap: float = Field(8.0, gt=0)
    """Mean number of days until the next visit of a customer who is not satisfied at all."""
    satisfaction_memory: float = Field(0.0, ge=0, lt=1)
    """Weight of earlier lists in the satisfaction of a customer; 0: only the last list counts."""
    churn: float = Field(0.0, ge=0, le=1)
    """Probability that a customer who is not satisfied at all leaves for good after a visit."""
    list_complements: bool = False
    """Whether a click within a list makes items further down attractive that go with the clicked item."""
    list_fatigue: float = Field(0.0, ge=0, le=10)
    """Appeal, as a logit, that an item loses for each item of its group in a slot above."""

    @field_validator("examination")
    @classmethod
    def _are_probabilities(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= value <= 1 for value in values):
            raise ValueError("probabilities are between 0 and 1")
        return values

    @property
    def effects(self) -> ListEffects:
        """What the items of a list do to each other; with any effect, an item is clicked once in a list."""
        has_effects = self.list_complements or self.list_fatigue > 0
        return ListEffects(self.list_complements, self.list_fatigue, not has_effects, self.examination)


@dataclass(frozen=True, eq=False)
class ListProblem:
    """What decides the value of every list for some customers at some times.

    Attributes:
        appeal: logit of a click on each item alone, [B, N]; -inf: it cannot be clicked.
        groups: group of each item, [N].
        gains: what an item's logit gains from the last item, by their groups, [G, G]; not below 0.
        before: group of each customer's last item, [B]; -1: none.
        effects: what the items of a list do to each other.

    """

    appeal: Floats
    groups: Ints
    gains: Floats
    before: Ints
    effects: ListEffects

    def select(self, rows: Ints) -> ListProblem:
        """Return the problem of some of the customers."""
        return ListProblem(self.appeal[rows], self.groups, self.gains, self.before[rows], self.effects)


@dataclass(frozen=True, eq=False)
class Answers:
    """What the customers of a batch did with their lists.

    Attributes:
        clicks: whether each slot was clicked, [B, K].
        purchases: whether each slot's item was bought, [B, K]; what is bought was clicked.
        click_probabilities: true probability of a click on each slot, position bias included, [B, K].
        purchase_probabilities: true probability of a purchase from each slot, [B, K].
        appeal: true probability of any click, [B].
        satisfaction: satisfaction after the list, [B].
        next_times: time of the next visit in seconds, [B]; inf: the customer has left for good.

    """

    clicks: Bools
    purchases: Bools
    click_probabilities: Floats
    purchase_probabilities: Floats
    appeal: Floats
    satisfaction: Floats
    next_times: Floats


class CustomerWorld(ABC):
    """Customers who look at lists, click, buy and come back.

    Attributes:
        settings: the settings that all worlds have.
        start: begin of the simulation, in seconds since 1970.
        end: end of the simulation.
        satisfaction: satisfaction of each customer, [C]; NaN: none yet.
        has_left: whether each customer has left for good, [C].

    """

    settings: CustomerConfig
    start: float
    end: float
    satisfaction: Floats
    has_left: Bools

    @property
    def num_customers(self) -> int:
        """Number of customers (C)."""
        return len(self.has_left)

    @property
    def num_slots(self) -> int:
        """Number of slots of a list."""
        return len(self.settings.examination)

    @property
    @abstractmethod
    def item_ids(self) -> list[str]:
        """Ids of the items, [N]."""

    @property
    @abstractmethod
    def titles(self) -> list[str]:
        """Titles of the items, [N]; empty: they have none."""

    @property
    @abstractmethod
    def user_ids(self) -> list[str]:
        """Ids of the customers, [C]."""

    @property
    @abstractmethod
    def groups(self) -> Ints:
        """Group of each item, [N]."""

    @abstractmethod
    def former_tables(self) -> dict[str, pl.DataFrame]:
        """Return the tables interactions, items (in the order of the world) and users that the world begins with.

        User ids are text, timestamps are seconds.
        """

    @abstractmethod
    def log_settings(self) -> dict[str, Any]:
        """Return the contents of dataset.toml for these tables."""

    @abstractmethod
    def stock(self, time: float) -> Bools:
        """Return which items there are at a time, [N]."""

    @abstractmethod
    def click_table(self, customers: Ints, times: Floats, rows: Ints) -> Floats:
        """Return the click table of a list for each customer, [B, K + 1, K] (see data.shop.list_truth).

        Args:
            customers: numbers of the customers, [B].
            times: times in seconds, [B].
            rows: rows of the items, [B, K]; -1: an empty slot.

        """

    @abstractmethod
    def desires(self, customers: Ints, times: Floats, rows: Ints) -> Floats:
        """Return the probability that each clicked item is bought, [B, K]; arguments as for `click_table`."""

    @abstractmethod
    def list_problem(self, customers: Ints, times: Floats) -> ListProblem:
        """Return what decides the value of every list; arguments as for `click_table`."""

    @abstractmethod
    def _remember(self, customers: Ints, times: Floats, rows: Ints, clicks: Bools, purchases: Bools) -> None:
        """Update what the customers remember of a list; arguments as for `click_table`, and what they did, [B, K]."""

    def first_times(self) -> Floats:
        """Return the time of each customer's first visit, [C]: within the longest usual time between two visits."""
        chances = np.random.default_rng([self.settings.seed, FIRST_VISITS]).random(self.num_customers)
        result: Floats = self.start + chances * self.settings.longest_gap * DAY
        return result

    def mean_gap(self, satisfaction: Floats | float) -> Floats:
        """Return the mean number of days until the next visit, given the satisfaction of a customer."""
        low, high = self.settings.shortest_gap, self.settings.longest_gap
        result: Floats = np.asarray(high ** (1 - np.asarray(satisfaction)) * low ** np.asarray(satisfaction))
        return result

    def answers(self, customers: Ints, times: Floats, visits: Ints, rows: Ints) -> Answers:
        """Return what customers do with their lists, and remember it.

        Args:
            customers: numbers of the customers, [B], all different.
            times: times of the visits in seconds, [B].
            visits: number of each visit of its customer, [B]; it decides about chance.
            rows: rows of the items, best first, [B, K]; -1: an empty slot. K is at most the number of slots.

        """
        looks, size = np.array(self.settings.examination), rows.shape[1]
        assert size <= len(looks), "a list has at most as many items as there are slots"
        numbers = uniform_numbers(self.settings.seed, LISTS, customers, visits, count=3 * len(looks) + 2)
        of_slots = numbers[:, 2:].reshape(len(rows), 3, len(looks))[:, :, :size]
        table = self.click_table(customers, times, rows)
        clicks = sample_clicks(table, looks, of_slots[:, 0], of_slots[:, 1])
        desires = self.desires(customers, times, rows)
        purchases: Bools = clicks & (of_slots[:, 2] < desires)
        appeal = any_click_probability(table, looks)
        expected = click_probabilities(table, looks)
        self._remember(customers, times, rows, clicks, purchases)
        satisfaction = self._satisfied(customers, appeal)
        gaps = np.maximum(HOUR, -np.log1p(-numbers[:, 0]) * self.mean_gap(satisfaction) * DAY)
        leaves = numbers[:, 1] < self.settings.churn * (1 - satisfaction)
        self.has_left[customers] |= leaves
        next_times: Floats = np.where(leaves, np.inf, times + gaps)
        return Answers(clicks, purchases, expected, expected * desires, appeal, satisfaction, next_times)

    def _satisfied(self, customers: Ints, appeal: Floats) -> Floats:
        """Return the satisfaction of customers after lists of an appeal, [B], and store it."""
        memory, former = self.settings.satisfaction_memory, self.satisfaction[customers]
        satisfaction: Floats = np.where(np.isnan(former), appeal, memory * former + (1 - memory) * appeal)
        self.satisfaction[customers] = satisfaction
        return satisfaction
