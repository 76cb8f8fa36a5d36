"""Let a policy serve all customers of a world from the first day to the last, and record every list.

Customers who visit on one day are served together, day by day; a customer who comes twice a day is served twice. As no
customer knows of another, the order within a day changes nothing.
Shapes: T shown items, V visits, K slots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from nextitem.data.shop.truth import Floats, Ints
from nextitem.simulation.answers import DAY, Answers, CustomerWorld
from nextitem.simulation.optimum import best_lists
from nextitem.simulation.policies import Lists, OptimalLists, Policy, Visits, make_lists

SECONDS_PER_SLOT = 9  # between the looks at two slots


@dataclass
class Rollout:
    """Everything that happened while a policy served the customers.

    Attributes:
        world: the world, in its last state.
        policy: name of the policy.
        visits: one row for each visit: visit, customer, number, time (seconds), clicks and purchases (numbers of
            items), value (expected clicks), best_value and bound (of the best list; NaN: not searched), appeal
            (probability of any click), satisfaction, has_left (for good, after this visit).
        shown_items: one row for each shown item: visit, slot, row (of the item), propensity, click_probability,
            purchase_probability, click, purchase.
        next_times: time of each customer's next visit, which was not served; inf: the customer has left for good.

    """

    world: CustomerWorld
    policy: str
    visits: pl.DataFrame
    shown_items: pl.DataFrame
    next_times: Floats


@dataclass
class _Record:
    """Tables of the visits so far, batch by batch."""

    visits: list[pl.DataFrame] = field(default_factory=list)
    shown_items: list[pl.DataFrame] = field(default_factory=list)
    num_visits: int = 0

    def add(self, visitors: Visits, lists: Lists, answers: Answers, best_values: Floats, bounds: Floats) -> None:
        """Add the visits of a batch."""
        count, size = lists.rows.shape
        numbers = self.num_visits + np.arange(count)
        self.num_visits += count
        value = answers.click_probabilities.sum(axis=1)
        self.visits.append(
            pl.DataFrame(
                {
                    "visit": numbers,
                    "customer": visitors.customers,
                    "number": visitors.numbers,
                    "time": visitors.times,
                    "clicks": answers.clicks.sum(axis=1),
                    "purchases": answers.purchases.sum(axis=1),
                    "value": value,
                    "best_value": np.maximum(best_values, value),
                    "bound": np.maximum(bounds, value),
                    "appeal": answers.appeal,
                    "satisfaction": answers.satisfaction,
                    "has_left": np.isinf(answers.next_times),
                }
            )
        )
        shown_items = pl.DataFrame(
            {
                "visit": np.repeat(numbers, size),
                "slot": np.tile(np.arange(1, size + 1), count),
                "row": lists.rows.ravel(),
                "propensity": lists.propensities.ravel(),
                "click_probability": answers.click_probabilities.ravel(),
                "purchase_probability": answers.purchase_probabilities.ravel(),
                "click": answers.clicks.ravel(),
                "purchase": answers.purchases.ravel(),
            }
        )
        self.shown_items.append(shown_items.filter(pl.col("row") >= 0))


def roll_out(
    world: CustomerWorld,
    policy: Policy,
    *,
    temperature: float = 0.0,
    regret_customers: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Rollout:
    """Let a policy serve the customers of a world until the last day.

    Args:
        world: the world, in which nobody has been served yet.
        policy: the policy.
        temperature: how much of a list is left to chance (see policies.make_lists).
        regret_customers: number of customers, from the first, whose best lists are searched; None: all. The others have
            no regret (NaN).
        progress: is called with a line of text after each day.

    """
    record = _Record()
    searched = world.num_customers if regret_customers is None else regret_customers
    next_times = world.first_times()
    numbers: Ints = np.ones(world.num_customers, dtype=np.int64)
    num_days = int(np.ceil((world.end - world.start) / DAY))
    for day in range(num_days):
        stop = min(world.end, world.start + (day + 1) * DAY)
        stock = world.stock(world.start + day * DAY)
        while len(due := np.flatnonzero(next_times < stop)):
            visitors = Visits(due, next_times[due], numbers[due], stock)
            next_times[due] = _serve(world, policy, visitors, record, temperature, searched)
            numbers[due] += 1
        progress(f"{policy.name}: day {day + 1} of {num_days}, {record.num_visits:,} visits")
    return Rollout(world, policy.name, _table(record.visits), _table(record.shown_items), next_times)


def _serve(
    world: CustomerWorld, policy: Policy, visitors: Visits, record: _Record, temperature: float, searched: int
) -> Floats:
    """Serve the customers who ask, and return their next times, [B]."""
    lists = make_lists(policy, visitors, size=world.num_slots, temperature=temperature, seed=world.settings.seed)
    best_values, bounds = np.full((2, len(visitors.customers)), np.nan)
    rows = np.flatnonzero(visitors.customers < searched)
    if isinstance(policy, OptimalLists) and policy.latest is not None:
        best_values, bounds = policy.latest.values, policy.latest.bounds
    elif len(rows):
        best = best_lists(world.list_problem(visitors.customers[rows], visitors.times[rows]))
        best_values[rows], bounds[rows] = best.values, best.bounds
    answers = world.answers(visitors.customers, visitors.times, visitors.numbers, lists.rows)
    policy.observe(visitors, lists.rows, answers)
    record.add(visitors, lists, answers, best_values, bounds)
    return answers.next_times


def _table(parts: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(parts) if parts else pl.DataFrame()
