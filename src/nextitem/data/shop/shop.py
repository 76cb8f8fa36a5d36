"""The simulated shop: the embedded default data set, with its ground truth.

Customers come in sessions. In a session a customer follows a project, a path through categories that go
together, over one or more sessions; project and step stay hidden. Interest in departments, the season and drift
over the year choose the project; taste, price, fame, novelty, country and what the session holds already
(style and brand should match) choose the item within a category. What is used up is bought again after a while;
durable goods are bought once. Some sessions open with a slate that a logging policy drew.
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
MAX_SESSIONS = 40  # of one customer
MAX_STEPS = 12  # items of one session, slate and repeat purchases aside
SLATE_SHARE = 0.3  # of sessions that open with a slate
UNIFORM_SHARE = 0.15  # of slates drawn by the uniform policy
CONTINUE = 0.75  # probability that a session goes on with an unfinished project
# Probability of one more item of the same category once 1, and 2 or more, of it were looked at: customers
# compare two and go on, so what comes next takes more than the last item to tell.
COMPARE = np.array([0.8, 0.15])
WANDER = 0.05  # probability that an item has nothing to do with the project
STYLE_MATCH, BRAND_MATCH = 2.0, 3.0  # appeal of the style and the brand of the session's last item
SEEN_LOSS = 4.0  # appeal that an item loses once the customer has looked at it
REORDER_SLOTS = 3  # consumables that a customer has on the list
REORDER_DAYS = 30.0  # mean time until one is used up
REORDER_CHANCE = 0.35  # that a session buys again what has long been used up
RETURN_SHARE = 0.03  # of purchases that are sent back
CLICK, PURCHASE, RETURN = 0, 1, 2
ACTIONS = ("click", "purchase", "return")


@dataclass(frozen=True, eq=False)
class Shop:
    """The simulated shop as the tables of a dataset folder, its dataset.toml and its ground truth.

    interactions   user_id, item_id, timestamp (seconds), action, session_id, price, quantity; by time
    items          item_id, title, department, category, brand, price_band, price, released (seconds)
    users          user_id, country
    impressions    impression_id, item_id, timestamp, user_id, slot (1..6), propensity, policy, click, purchase;
                   the propensity of an item is its probability in its slot given the items above it
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame
    impressions: pl.DataFrame
    settings: dict[str, Any]
    truth: ShopTruth

    def write(self, folder: str | Path) -> None:
        """Writes the dataset folder: four Parquet files and dataset.toml. UserError where it is not empty."""
        place = Path(folder)
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise UserError(f"{place} exists and is not an empty folder; give another one")
        place.mkdir(parents=True, exist_ok=True)
        for name in ("interactions", "items", "users", "impressions"):
            getattr(self, name).write_parquet(place / f"{name}.parquet", compression="zstd")
        (place / "dataset.toml").write_text(tomli_w.dumps(self.settings), encoding="utf-8")


def generate_shop(seed: int = 0, *, num_items: int = 3000, num_users: int = 5000) -> Shop:
    """Simulates the shop over one year.

    The same arguments give the same shop bit for bit (by one version of numpy on one kind of processor).
    UserError for fewer than two items per category or no users.
    """
    if num_items < MIN_ITEMS:
        raise UserError(f"num_items = {num_items}: the shop has {len(CATEGORIES)} categories; give {MIN_ITEMS} or more")
    if num_users < 1:
        raise UserError(f"num_users = {num_users}: give 1 or more")
    rng = np.random.default_rng(seed)
    items, of_items = make_items(rng, num_items)
    users, of_users = make_users(rng, num_users, np.asarray(of_items["vectors"], dtype=np.float64))
    known = {**of_items, **of_users, "complements": complements(), "owned": np.empty((0, 3), np.int64)}
    assert set(known) == {entry.name for entry in fields(ShopTruth)}
    simulation = _Simulation(ShopTruth(**known), rng)  # type: ignore[arg-type]
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
    """Columns of what happened, in pieces, by row of users and items."""

    events: list[tuple[Ints, ...]] = field(default_factory=list)  # user, item, time, action, session
    slates: list[tuple[Any, ...]] = field(default_factory=list)  # see impressions()
    shown: int = 0  # slates so far

    def interactions(self, rng: Generator, price: Floats) -> pl.DataFrame:
        user, item, time, action, session = (np.concatenate(column) for column in zip(*self.events, strict=True))
        sent_back = (action == PURCHASE) & (rng.random(len(action)) < RETURN_SHARE)
        later = time[sent_back] + rng.integers(3 * 86_400, 14 * 86_400, size=sent_back.sum())
        first = session.max() + 1
        returns = (
            user[sent_back],
            item[sent_back],
            later,
            np.full(len(later), RETURN),
            first + np.arange(len(later)),
        )
        user, item, time, action, session = (
            np.concatenate(pair) for pair in zip((user, item, time, action, session), returns, strict=True)
        )
        keep = np.flatnonzero(time < START + YEAR)
        order = keep[np.lexsort((user[keep], time[keep]))]
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
        slate, item, time, user, propensity, uniform, click, purchase = (
            np.concatenate(column) for column in zip(*self.slates, strict=True)
        )
        slots = np.broadcast_to(np.arange(NUM_SLOTS), item.shape)

        def wide(column: Any) -> Any:
            return np.repeat(column, NUM_SLOTS)

        frame = pl.DataFrame(
            {
                "impression_id": wide(slate),
                "item_id": item.ravel() + FIRST_ITEM,
                "timestamp": wide(time),
                "user_id": wide(user) + FIRST_USER,
                "slot": slots.ravel() + 1,
                "propensity": propensity.ravel(),
                "policy": np.where(wide(uniform), POLICIES[1], POLICIES[0]),
                "click": click.ravel().astype(np.int64),
                "purchase": purchase.ravel().astype(np.int64),
            }
        )
        return frame.sort("timestamp", "impression_id", "slot")


class _Simulation:
    """All customers at once: their first sessions, their second ones, and so on, item by item."""

    def __init__(self, truth: ShopTruth, rng: Generator) -> None:
        self.truth, self.rng, self.log = truth, rng, _Log()
        num_users, num_items = len(truth.country), len(truth.category)
        self.owned = np.zeros((num_users, num_items), dtype=np.bool_)
        self.seen = np.zeros_like(self.owned)
        self.purchases: list[Ints] = []  # of durable goods: user, item, time
        self.project = np.full(num_users, -1)  # -1: none under way
        self.step = np.zeros(num_users, dtype=np.int64)
        self.compared = np.zeros(num_users, dtype=np.int64)  # items looked at in the step's category
        self.last = np.full(num_users, -1)  # last item of each customer
        self.anchor = np.full(num_users, -1)  # last item that the project led to
        self.end = np.zeros(num_users, dtype=np.int64)  # end of the last session
        self.reorder = np.full((num_users, REORDER_SLOTS), -1)  # consumables on the list
        self.reorder_time = np.zeros((num_users, REORDER_SLOTS), dtype=np.int64)
        self.shelves = _shelves(truth.category)

    def run(self) -> None:
        planned = _session_times(self.rng, len(self.truth.country))
        session = 0
        for column in planned.T:
            users = np.flatnonzero(column > 0)
            start = np.maximum(column[users], self.end[users] + 3600)
            inside = start < START + YEAR
            users, start = users[inside], start[inside]
            if not len(users):
                break
            self._session(users, start, session + np.arange(len(users)))
            session += len(users)
            if self.purchases:
                owned = np.concatenate(self.purchases)
                owned = owned[np.lexsort(owned.T[::-1])]
                self.truth = replace(self.truth, owned=owned)

    def _session(self, users: Ints, start: Ints, session: Ints) -> None:
        slated = self.rng.random(len(users)) < SLATE_SHARE
        self._slates(users[slated], start[slated], session[slated])
        clock = start + 120
        length = np.minimum(self.rng.geometric(0.22, size=len(users)), MAX_STEPS)
        # A project that goes on matches what it held in the last session.
        anchor = np.where(self._begin(users, start), self.anchor[users], -1)
        held = np.full((len(users), MAX_STEPS), -1)  # items of this session
        for step in range(MAX_STEPS):
            rows = np.flatnonzero(length > step)
            if not len(rows):
                break
            clock = clock + self.rng.integers(20, 240, size=len(users))
            if step:
                self._advance(users[rows], clock[rows])
            item = self._choose(users[rows], clock[rows], anchor[rows], held[rows, :step])
            found = item >= 0
            rows, item = rows[found], item[found]
            held[rows, step] = anchor[rows] = item
            bought = self._buys(users[rows], item, clock[rows])
            self._record(users[rows], item, clock[rows], bought, session[rows])
        # Last, on the way to the till: at the start they would be what protocol time asks for first, and a list of
        # the customer's own items would answer it.
        clock = clock + 60
        self._repeat_purchases(users, clock, session)
        self.anchor[users], self.end[users] = anchor, clock

    def _slates(self, users: Ints, start: Ints, session: Ints) -> None:
        """Draws slates without replacement: the smallest exponential variables over p are Plackett-Luce."""
        if not len(users):
            return
        uniform = self.rng.random(len(users)) < UNIFORM_SHARE
        chances = np.empty((len(users), len(self.truth.category)))
        for policy, rows in ((POLICIES[0], ~uniform), (POLICIES[1], uniform)):
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
        bought = click & (self.rng.random(item.shape) < self.truth.purchase_probability(*wide))
        slate = self.log.shown + np.arange(len(users))
        self.log.shown += len(users)
        self.log.slates.append((slate, item, start, users, propensity, uniform, click, bought))
        for slot in range(NUM_SLOTS):
            hit = np.flatnonzero(click[:, slot])
            time = start[hit] + 5 + 9 * slot
            self._record(users[hit], item[hit, slot], time, bought[hit, slot], session[hit])

    def _repeat_purchases(self, users: Ints, clock: Ints, session: Ints) -> None:
        """Buys again what has been used up meanwhile."""
        for slot in range(REORDER_SLOTS):
            listed = self.reorder[users, slot]
            age = (clock - self.reorder_time[users, slot]) / 86_400
            due = self.rng.random(len(users)) < REORDER_CHANCE * (1 - np.exp(-age / REORDER_DAYS))
            rows = np.flatnonzero(due & (listed >= 0))
            time = clock[rows] + 15 * slot
            self._record(users[rows], listed[rows], time, np.ones(len(rows), np.bool_), session[rows])

    def _begin(self, users: Ints, start: Ints) -> Bools:
        """Goes on with the project of the last session, or begins one; says which customers go on."""
        goes_on = (self.project[users] >= 0) & (self.rng.random(len(users)) < CONTINUE)
        self._advance(users[goes_on], start[goes_on])
        self._new_project(users[~goes_on], start[~goes_on])
        return goes_on

    def _advance(self, users: Ints, times: Ints) -> None:
        """Compares more items of the category or moves along the path; at its end a new project begins."""
        stays = self.rng.random(len(users)) < COMPARE[np.minimum(self.compared[users], 2) - 1]
        self.compared[users] = np.where(stays, self.compared[users] + 1, 1)
        ahead = 1 + np.searchsorted(np.cumsum(ADVANCE)[:-1], self.rng.random(len(users)), side="right")
        self.step[users] += np.where(stays, 0, ahead)
        done = self.step[users] >= PATHS.shape[1]
        self._new_project(users[done], times[done])

    def _new_project(self, users: Ints, times: Ints) -> None:
        interest = self.truth.interests(users, times)[:, CATEGORY_DEPARTMENT[PATHS[:, 0]]]
        self.project[users] = (interest + self.rng.gumbel(size=interest.shape)).argmax(axis=1)
        self.step[users] = self.rng.random(len(users)) < 0.3
        self.compared[users] = 1

    def _choose(self, users: Ints, times: Ints, anchor: Ints, held: Ints) -> Ints:
        """An item of the project's category for each customer, -1 where none is to be had."""
        truth = self.truth
        category = PATHS[self.project[users], self.step[users]]
        wander = self.rng.random(len(users)) < WANDER
        interest = truth.interests(users[wander], times[wander])[:, CATEGORY_DEPARTMENT]
        category[wander] = (interest + self.rng.gumbel(size=interest.shape)).argmax(axis=1)
        item = self.shelves[category]
        free: Bools = np.not_equal(item, -1)
        free &= (truth.released[item] <= times[:, None]) & truth.sold_in[item, truth.country[users][:, None]]
        free &= ~self.owned[users[:, None], item]
        for earlier in held.T:
            free &= item != earlier[:, None]
        appeal = truth.affinity(users[:, None], item, times[:, None])
        appeal -= SEEN_LOSS * self.seen[users[:, None], item]
        led = (anchor >= 0)[:, None]
        appeal += STYLE_MATCH * (led & (truth.style[item] == truth.style[anchor][:, None]))
        appeal += BRAND_MATCH * (led & (truth.brand[item] == truth.brand[anchor][:, None]))
        appeal = np.where(free, appeal + self.rng.gumbel(size=appeal.shape), -np.inf)
        best = appeal.argmax(axis=1)
        chosen: Ints = np.where(free.any(axis=1), item[np.arange(len(users)), best], -1)
        return chosen

    def _buys(self, users: Ints, items: Ints, times: Ints) -> Bools:
        bought: Bools = self.rng.random(len(users)) < self.truth.purchase_probability(users, items, times)
        return bought

    def _record(self, users: Ints, items: Ints, times: Ints, bought: Bools, session: Ints) -> None:
        action = np.where(bought, PURCHASE, CLICK)
        self.log.events.append((users, items, times, action, session))
        self.last[users] = items
        self.seen[users, items] = True
        consumable = self.truth.consumable[items]
        durable = bought & ~consumable
        self.owned[users[durable], items[durable]] = True
        self.purchases.append(np.stack([users[durable], items[durable], times[durable]], axis=1))
        again = bought & consumable
        users, items, times = users[again], items[again], times[again]
        same = self.reorder[users] == items[:, None]
        # A new good takes the place of the one that was bought longest ago.
        slot = np.where(same.any(axis=1), same.argmax(axis=1), self.reorder_time[users].argmin(axis=1))
        self.reorder[users, slot], self.reorder_time[users, slot] = items, times


def _shelves(category: Ints) -> Ints:
    """[C, longest]: the items of each category, -1 behind the last."""
    counts = np.bincount(category, minlength=len(CATEGORIES))
    result = np.full((len(CATEGORIES), counts.max()), -1)
    order = np.argsort(category, kind="stable")
    result[category[order], np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)] = order
    return result


def _session_times(rng: Generator, num_users: int) -> Ints:
    """[U, MAX_SESSIONS]: when sessions should start, ascending; 0 behind the last."""
    count = np.clip(np.exp(1.15 + 0.85 * rng.normal(size=num_users)).astype(np.int64) + 1, 1, MAX_SESSIONS)
    joined = np.where(rng.random(num_users) < 0.55, 0.0, rng.uniform(0, 0.95, size=num_users))
    spread = joined[:, None] + (1 - joined[:, None]) * rng.random((num_users, MAX_SESSIONS)) ** 0.8  # the shop grows
    day = (spread * 365).astype(np.int64)
    hour = np.clip(rng.normal(17, 3.5, size=day.shape), 6, 23.5)  # most people shop in the evening
    times = START + day * 86_400 + (hour * 3600).astype(np.int64)
    times[np.arange(MAX_SESSIONS) >= count[:, None]] = START + 10 * YEAR
    times = np.sort(times, axis=1)
    times[times >= START + YEAR] = 0
    return times
