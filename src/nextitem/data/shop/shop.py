"""Simulate a shop: the default data set of the package, with its ground truth.

Customers have sessions. A customer follows a project, a path through related categories, over one or more sessions;
project and step are latent. The project depends on the interest in departments, the season, and drift over the year.
The item within a category depends on taste, price, popularity, novelty, country, and the items of the session so far
(style and brand should match). Consumables are bought again after a while, durable goods are bought once. Some sessions
begin with a slate that a logging policy sampled.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import tomli_w
from numpy.random import Generator

from nextitem.core.errors import UserError
from nextitem.data.shop.catalog import (
    ADVANCE,
    CATEGORY_DEPARTMENT,
    FIRST_ITEM,
    FIRST_USER,
    PATHS,
    complements,
    make_items,
    make_users,
)
from nextitem.data.shop.truth import NUM_SLOTS, POLICIES, START, YEAR, Bools, Floats, Ints, ShopTruth
from nextitem.data.shop.words import CATEGORIES

SETTINGS: dict[str, Any] = {
    "name": "shop",
    "repeats": True,
    "interactions": {
        "positive_actions": ["click", "purchase"],  # a return is context, never a target
        "context": {"price": "numeric", "quantity": "numeric"},
    },
    "items": {
        "text": "{title}. {category}. {department}. {brand}. {price_band}",
        "features": {
            "department": "categorical",
            "category": "categorical",
            "brand": "categorical",
            "price_band": "categorical",
            "price": "numeric",
        },
        "released": "released",
    },
    "users": {"features": {"country": "categorical"}},
    "impressions": {"labels": ["click", "purchase"]},
}

MIN_ITEMS = 2 * len(CATEGORIES)
MAX_SESSIONS = 40  # maximal number of sessions of one customer
MAX_STEPS = 12  # maximal number of items of one session, without slate and repeat purchases
SLATE_SHARE = 0.3  # share of sessions that begin with a slate
UNIFORM_SHARE = 0.15  # share of slates that the uniform policy samples
CONTINUE = 0.75  # probability that a session continues an unfinished project
# Probability of a further item of the same category after 1, and after 2 or more, of its items were viewed. Customers
# compare two items and then continue, so the last item alone does not determine the next one.
COMPARE = np.array([0.8, 0.15])
WANDER = 0.05  # probability that an item is unrelated to the project
STYLE_MATCH, BRAND_MATCH = 2.0, 3.0  # appeal of an item with the style, or the brand, of the session's last item
SEEN_LOSS = 4.0  # appeal that an item loses after the customer has viewed it
REORDER_SLOTS = 3  # number of consumables on a customer's list
REORDER_DAYS = 30.0  # mean number of days until a consumable is used up
REORDER_CHANCE = 0.35  # probability that a session buys a consumable again that was used up long ago
RETURN_SHARE = 0.03  # share of purchases that are returned
CLICK, PURCHASE, RETURN = 0, 1, 2
ACTIONS = ("click", "purchase", "return")


@dataclass(frozen=True, eq=False)
class Shop:
    """The simulated shop as the tables of a dataset folder, its dataset.toml and its ground truth.

    Attributes:
        interactions: user_id, item_id, timestamp (seconds), action, session_id, price, quantity; by time.
        items: item_id, title, department, category, brand, price_band, price, released (seconds).
        users: user_id, country.
        impressions: impression_id, item_id, timestamp, user_id, slot (1..6), propensity, policy, click, purchase; the
            propensity of an item is its probability in its slot, given the items in earlier slots.

    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame
    impressions: pl.DataFrame
    settings: dict[str, Any]
    truth: ShopTruth

    def write(self, folder: str | Path) -> None:
        """Write the dataset folder: four Parquet files and dataset.toml. Raises UserError if it is not empty."""
        place = Path(folder)
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise UserError(f"{place} exists and is not an empty folder; give another one")
        place.mkdir(parents=True, exist_ok=True)
        for name in ("interactions", "items", "users", "impressions"):
            getattr(self, name).write_parquet(place / f"{name}.parquet", compression="zstd")
        (place / "dataset.toml").write_text(tomli_w.dumps(self.settings), encoding="utf-8")


def generate_shop(seed: int = 0, *, num_items: int = 3000, num_users: int = 5000) -> Shop:
    """Simulate the shop over one year.

    The same arguments return the same shop bit for bit (with one version of numpy on one kind of processor).

    Args:
        seed: seed of all random numbers.
        num_items: number of items, at least MIN_ITEMS: two for each category.
        num_users: number of customers, at least 1.

    Raises:
        UserError: there are fewer items or users.

    """
    if num_items < MIN_ITEMS:
        raise UserError(f"num_items = {num_items}: the shop has {len(CATEGORIES)} categories; give {MIN_ITEMS} or more")
    if num_users < 1:
        raise UserError(f"num_users = {num_users}: give 1 or more")
    rng = np.random.default_rng(seed)
    items, item_truth = make_items(rng, num_items)
    users, user_truth = make_users(rng, num_users, np.asarray(item_truth["vectors"], dtype=np.float64))
    truth = {**item_truth, **user_truth, "complements": complements(), "owned": np.empty((0, 3), np.int64)}
    assert set(truth) == {entry.name for entry in fields(ShopTruth)}
    simulation = _Simulation(ShopTruth(**truth), rng)  # type: ignore[arg-type]
    simulation.run()
    price = items["price"].to_numpy()
    return Shop(
        interactions=simulation.log.interactions(rng, price),
        items=items,
        users=users,
        impressions=simulation.log.impressions(),
        settings=SETTINGS,
        truth=simulation.truth,
    )


@dataclass
class _Log:
    """Events and slates of the simulation as pieces of columns; users and items are row numbers."""

    events: list[tuple[Ints, ...]] = field(default_factory=list)  # columns user, item, time, action, session
    slates: list[tuple[Any, ...]] = field(default_factory=list)  # columns as in `impressions`
    num_slates: int = 0  # number of slates so far

    def interactions(self, rng: Generator, price: Floats) -> pl.DataFrame:
        """Return the interactions with sampled returns and quantities, by time; `price [N]` are the prices of items."""
        user, item, time, action, session = (np.concatenate(column) for column in zip(*self.events, strict=True))
        is_returned = (action == PURCHASE) & (rng.random(len(action)) < RETURN_SHARE)
        later = time[is_returned] + rng.integers(3 * 86_400, 14 * 86_400, size=is_returned.sum())
        first = session.max() + 1
        returns = (
            user[is_returned],
            item[is_returned],
            later,
            np.full(len(later), RETURN),
            first + np.arange(len(later)),
        )
        user, item, time, action, session = (
            np.concatenate(pair) for pair in zip((user, item, time, action, session), returns, strict=True)
        )
        rows_in_year = np.flatnonzero(time < START + YEAR)
        order = rows_in_year[np.lexsort((user[rows_in_year], time[rows_in_year]))]
        quantity = np.where(action == PURCHASE, 1 + rng.geometric(0.8, size=len(action)) // 2, 1)
        return pl.DataFrame(
            {
                "user_id": user[order] + FIRST_USER,
                "item_id": item[order] + FIRST_ITEM,
                "timestamp": time[order],
                "action": pl.Series([ACTIONS[index] for index in action[order]], dtype=pl.String),
                "session_id": session[order],
                "price": price[item[order]],
                "quantity": quantity[order],
            }
        )

    def impressions(self) -> pl.DataFrame:
        """Return the impressions, one row for each slot of a slate, by time."""
        slate, item, time, user, propensity, is_uniform, click, purchase = (
            np.concatenate(column) for column in zip(*self.slates, strict=True)
        )
        slots = np.broadcast_to(np.arange(NUM_SLOTS), item.shape)

        def per_slot(column: Any) -> Any:
            """Repeat the value of each slate for its slots."""
            return np.repeat(column, NUM_SLOTS)

        frame = pl.DataFrame(
            {
                "impression_id": per_slot(slate),
                "item_id": item.ravel() + FIRST_ITEM,
                "timestamp": per_slot(time),
                "user_id": per_slot(user) + FIRST_USER,
                "slot": slots.ravel() + 1,
                "propensity": propensity.ravel(),
                "policy": np.where(per_slot(is_uniform), POLICIES[1], POLICIES[0]),
                "click": click.ravel().astype(np.int64),
                "purchase": purchase.ravel().astype(np.int64),
            }
        )
        return frame.sort("timestamp", "impression_id", "slot")


class _Simulation:
    """Simulation of all customers at once: their first sessions, their second ones, and so on, item by item."""

    def __init__(self, truth: ShopTruth, rng: Generator) -> None:
        self.truth, self.rng, self.log = truth, rng, _Log()
        num_users, num_items = len(truth.country), len(truth.category)
        self.owned = np.zeros((num_users, num_items), dtype=np.bool_)
        self.seen = np.zeros_like(self.owned)
        self.purchases: list[Ints] = []  # purchases of durable goods: user, item, time
        self.project = np.full(num_users, -1)  # current project; -1: none
        self.step = np.zeros(num_users, dtype=np.int64)
        self.compared = np.zeros(num_users, dtype=np.int64)  # number of items viewed in the step's category
        self.last = np.full(num_users, -1)  # last item of each customer
        self.anchor = np.full(num_users, -1)  # last item of the current project
        self.end = np.zeros(num_users, dtype=np.int64)  # end of the last session
        self.reorder = np.full((num_users, REORDER_SLOTS), -1)  # consumables on the list
        self.reorder_time = np.zeros((num_users, REORDER_SLOTS), dtype=np.int64)
        self.shelves = _shelves(truth.category)

    def run(self) -> None:
        """Simulate all sessions of all customers."""
        planned = _session_times(self.rng, len(self.truth.country))
        session = 0
        for column in planned.T:
            users = np.flatnonzero(column > 0)
            start = np.maximum(column[users], self.end[users] + 3600)
            is_in_year = start < START + YEAR
            users, start = users[is_in_year], start[is_in_year]
            if not len(users):
                break
            self._session(users, start, session + np.arange(len(users)))
            session += len(users)
            if self.purchases:
                owned = np.concatenate(self.purchases)
                owned = owned[np.lexsort(owned.T[::-1])]
                self.truth = replace(self.truth, owned=owned)

    def _session(self, users: Ints, start: Ints, session: Ints) -> None:
        """Simulate one session of each of these users; `start` are times in seconds, `session` the session ids."""
        has_slate = self.rng.random(len(users)) < SLATE_SHARE
        self._slates(users[has_slate], start[has_slate], session[has_slate])
        clock = start + 120
        length = np.minimum(self.rng.geometric(0.22, size=len(users)), MAX_STEPS)
        # If a project continues, items match those of the last session.
        anchor = np.where(self._begin(users, start), self.anchor[users], -1)
        session_items = np.full((len(users), MAX_STEPS), -1)  # items of this session, -1: none yet
        for step in range(MAX_STEPS):
            rows = np.flatnonzero(length > step)
            if not len(rows):
                break
            clock = clock + self.rng.integers(20, 240, size=len(users))
            if step:
                self._advance(users[rows], clock[rows])
            item = self._choose(users[rows], clock[rows], anchor[rows], session_items[rows, :step])
            has_item = item >= 0
            rows, item = rows[has_item], item[has_item]
            session_items[rows, step] = anchor[rows] = item
            is_purchase = self._buys(users[rows], item, clock[rows])
            self._record(users[rows], item, clock[rows], is_purchase, session[rows])
        # Repeat purchases come last: at the start they would be the targets of protocol `time`, and a list of the
        # customer's own items would predict them.
        clock = clock + 60
        self._repeat_purchases(users, clock, session)
        self.anchor[users], self.end[users] = anchor, clock

    def _slates(self, users: Ints, start: Ints, session: Ints) -> None:
        """Sample slates without replacement, log them and their clicks and purchases.

        The order of exponential variables divided by p is a Plackett-Luce sample.
        """
        if not len(users):
            return
        is_uniform = self.rng.random(len(users)) < UNIFORM_SHARE
        chances = np.empty((len(users), len(self.truth.category)))
        for policy, rows in ((POLICIES[0], ~is_uniform), (POLICIES[1], is_uniform)):
            if rows.any():
                chances[rows] = self.truth.policy_probabilities(users[rows], start[rows], policy=policy)
        with np.errstate(divide="ignore"):
            race = self.rng.standard_exponential(chances.shape) / chances
        front = np.argpartition(race, NUM_SLOTS, axis=1)[:, :NUM_SLOTS]
        item = np.take_along_axis(front, np.take_along_axis(race, front, axis=1).argsort(axis=1), axis=1)
        chance = np.take_along_axis(chances, item, axis=1)
        propensity = chance / (1 - (np.cumsum(chance, axis=1) - chance))
        slots, wide = np.arange(1, NUM_SLOTS + 1), (users[:, None], item, start[:, None])
        last = self.last[users][:, None]
        click = self.rng.random(item.shape) < self.truth.click_probability(*wide, slots=slots, last_items=last)
        is_purchase = click & (self.rng.random(item.shape) < self.truth.purchase_probability(*wide))
        slate = self.log.num_slates + np.arange(len(users))
        self.log.num_slates += len(users)
        self.log.slates.append((slate, item, start, users, propensity, is_uniform, click, is_purchase))
        for slot in range(NUM_SLOTS):
            hit = np.flatnonzero(click[:, slot])
            time = start[hit] + 5 + 9 * slot
            self._record(users[hit], item[hit, slot], time, is_purchase[hit, slot], session[hit])

    def _repeat_purchases(self, users: Ints, clock: Ints, session: Ints) -> None:
        """Buy consumables again that have been used up meanwhile."""
        for slot in range(REORDER_SLOTS):
            listed_items = self.reorder[users, slot]
            age = (clock - self.reorder_time[users, slot]) / 86_400
            is_due = self.rng.random(len(users)) < REORDER_CHANCE * (1 - np.exp(-age / REORDER_DAYS))
            rows = np.flatnonzero(is_due & (listed_items >= 0))
            time = clock[rows] + 15 * slot
            self._record(users[rows], listed_items[rows], time, np.ones(len(rows), np.bool_), session[rows])

    def _begin(self, users: Ints, start: Ints) -> Bools:
        """Continue the project of the last session, or begin a new one; return which customers continue, bool [B]."""
        is_continued = (self.project[users] >= 0) & (self.rng.random(len(users)) < CONTINUE)
        self._advance(users[is_continued], start[is_continued])
        self._new_project(users[~is_continued], start[~is_continued])
        return is_continued

    def _advance(self, users: Ints, times: Ints) -> None:
        """Stay in the category to compare items, or move along the path of the project; at its end begin a new one."""
        stays = self.rng.random(len(users)) < COMPARE[np.minimum(self.compared[users], 2) - 1]
        self.compared[users] = np.where(stays, self.compared[users] + 1, 1)
        ahead = 1 + np.searchsorted(np.cumsum(ADVANCE)[:-1], self.rng.random(len(users)), side="right")
        self.step[users] += np.where(stays, 0, ahead)
        is_finished = self.step[users] >= PATHS.shape[1]
        self._new_project(users[is_finished], times[is_finished])

    def _new_project(self, users: Ints, times: Ints) -> None:
        """Sample a new project for each user by the interest in its first department."""
        interest = self.truth.interests(users, times)[:, CATEGORY_DEPARTMENT[PATHS[:, 0]]]
        self.project[users] = (interest + self.rng.gumbel(size=interest.shape)).argmax(axis=1)
        self.step[users] = self.rng.random(len(users)) < 0.3
        self.compared[users] = 1

    def _choose(self, users: Ints, times: Ints, anchor: Ints, session_items: Ints) -> Ints:
        """Sample an item of the project's category for each customer; -1 if no item is available.

        Args:
            users: row numbers of the customers, [B].
            times: times in seconds, [B].
            anchor: the last item of the current project, whose style and brand should match, [B]; -1: none.
            session_items: items of the session so far, which are not sampled again, [B, steps]; -1: none.

        """
        truth = self.truth
        category = PATHS[self.project[users], self.step[users]]
        is_wandering = self.rng.random(len(users)) < WANDER
        interest = truth.interests(users[is_wandering], times[is_wandering])[:, CATEGORY_DEPARTMENT]
        category[is_wandering] = (interest + self.rng.gumbel(size=interest.shape)).argmax(axis=1)
        item = self.shelves[category]
        is_available: Bools = np.not_equal(item, -1)
        is_available &= (truth.released[item] <= times[:, None]) & truth.sold_in[item, truth.country[users][:, None]]
        is_available &= ~self.owned[users[:, None], item]
        for earlier in session_items.T:
            is_available &= item != earlier[:, None]
        appeal = truth.affinity(users[:, None], item, times[:, None])
        appeal -= SEEN_LOSS * self.seen[users[:, None], item]
        has_anchor = (anchor >= 0)[:, None]
        appeal += STYLE_MATCH * (has_anchor & (truth.style[item] == truth.style[anchor][:, None]))
        appeal += BRAND_MATCH * (has_anchor & (truth.brand[item] == truth.brand[anchor][:, None]))
        appeal = np.where(is_available, appeal + self.rng.gumbel(size=appeal.shape), -np.inf)
        best = appeal.argmax(axis=1)
        sampled_items: Ints = np.where(is_available.any(axis=1), item[np.arange(len(users)), best], -1)
        return sampled_items

    def _buys(self, users: Ints, items: Ints, times: Ints) -> Bools:
        """Sample whether a click becomes a purchase, bool [B]."""
        is_purchase: Bools = self.rng.random(len(users)) < self.truth.purchase_probability(users, items, times)
        return is_purchase

    def _record(self, users: Ints, items: Ints, times: Ints, is_purchase: Bools, session: Ints) -> None:
        """Log clicks and purchases, and update what customers have seen and own, and their lists of consumables."""
        action = np.where(is_purchase, PURCHASE, CLICK)
        self.log.events.append((users, items, times, action, session))
        self.last[users] = items
        self.seen[users, items] = True
        consumable = self.truth.consumable[items]
        is_durable_purchase = is_purchase & ~consumable
        self.owned[users[is_durable_purchase], items[is_durable_purchase]] = True
        self.purchases.append(
            np.stack([users[is_durable_purchase], items[is_durable_purchase], times[is_durable_purchase]], axis=1)
        )
        is_consumable_purchase = is_purchase & consumable
        users, items, times = (
            users[is_consumable_purchase],
            items[is_consumable_purchase],
            times[is_consumable_purchase],
        )
        same = self.reorder[users] == items[:, None]
        # A new consumable replaces the one whose last purchase is the oldest.
        slot = np.where(same.any(axis=1), same.argmax(axis=1), self.reorder_time[users].argmin(axis=1))
        self.reorder[users, slot], self.reorder_time[users, slot] = items, times


def _shelves(category: Ints) -> Ints:
    """Return the items of each category, [C, size of the largest category], filled with -1."""
    counts = np.bincount(category, minlength=len(CATEGORIES))
    result = np.full((len(CATEGORIES), counts.max()), -1)
    order = np.argsort(category, kind="stable")
    result[category[order], np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)] = order
    return result


def _session_times(rng: Generator, num_users: int) -> Ints:
    """Return the planned start times of sessions in seconds, [U, MAX_SESSIONS], ascending, with 0 after the last."""
    count = np.clip(np.exp(1.15 + 0.85 * rng.normal(size=num_users)).astype(np.int64) + 1, 1, MAX_SESSIONS)
    join_time = np.where(rng.random(num_users) < 0.55, 0.0, rng.uniform(0, 0.95, size=num_users))
    # The exponent below 1 makes later sessions more likely: the shop grows.
    spread = join_time[:, None] + (1 - join_time[:, None]) * rng.random((num_users, MAX_SESSIONS)) ** 0.8
    day = (spread * 365).astype(np.int64)
    hour = np.clip(rng.normal(17, 3.5, size=day.shape), 6, 23.5)  # most people shop in the evening
    times = START + day * 86_400 + (hour * 3600).astype(np.int64)
    times[np.arange(MAX_SESSIONS) >= count[:, None]] = START + 10 * YEAR
    times = np.sort(times, axis=1)
    times[times >= START + YEAR] = 0
    return times
