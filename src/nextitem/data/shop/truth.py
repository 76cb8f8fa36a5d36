"""The simulated shop's ground truth: what customers want, and the true probabilities of clicks and purchases.

The simulation draws from these functions and nothing else, so estimates made from its log (calibration,
off-policy value, complements) can be held against them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

START = 1_704_067_200  # 2024-01-01 00:00 UTC: the first second of the simulated year
YEAR = 365 * 86_400
NUM_SLOTS = 6  # items of a slate
EXAMINATION = np.array([1.0, 0.78, 0.6, 0.47, 0.38, 0.31])  # probability that a slot is looked at
POLICIES = ("segment", "uniform")
EXPLORATION = 0.2  # share of uniform choice in the segment policy: importance weights stay below 1 / 0.2

POPULARITY_WEIGHT = 1.3
PRICE_WEIGHT = 1.1  # loss of appeal per squared unit between an item's price level and the customer's
NOVELTY_WEIGHT = 1.8
NOVELTY_DAYS = 30.0  # appeal of a new item falls by a factor e in this time
COUNTRY_WEIGHT = 0.6
CLICK_BIAS, CLICK_SCALE, CLICK_INTEREST, CLICK_COMPLEMENT = -2.6, 0.45, 0.55, 1.8
BUY_BIAS, BUY_SCALE, BUY_PRICE = -1.3, 0.3, 0.35


@dataclass(frozen=True, eq=False)
class ShopTruth:
    """Everything hidden in the shop. N items, U users, C categories, D departments, S styles, V latent width.

    Users and items are given by their row in the shop's users and items frames (from 0), times in seconds.
    Arguments broadcast against each other like numpy arrays: `users[:, None]` with `items` [N] gives [B, N].
    """

    category: Ints  # [N] index into shop_words.CATEGORIES
    department: Ints  # [N] index into shop_words.DEPARTMENTS
    style: Ints  # [N]
    brand: Ints  # [N]
    vectors: Floats  # [N, V] look and feel of an item: style, brand and its own
    item_price_level: Floats  # [N] log price relative to the category; standard deviation about 1
    popularity: Floats  # [N] log of what all customers like about an item
    released: Ints  # [N] seconds
    consumable: Bools  # [N] used up, and bought again
    sold_in: Bools  # [N, countries]
    country: Ints  # [U]
    country_taste: Floats  # [countries, V]
    interest_before: Floats  # [U, D] log interest in departments before the customer changes ...
    interest_after: Floats  # [U, D] ... and after
    taste_before: Floats  # [U, V]
    taste_after: Floats  # [U, V]
    change_time: Floats  # [U] seconds: the middle of the change
    change_span: Floats  # [U] seconds: how long it takes
    season: Floats  # [D, 2] weights of cosine and sine of the year
    price_level: Floats  # [U] the price level that suits the customer
    price_strictness: Floats  # [U] factor on PRICE_WEIGHT
    complements: Floats  # [C, C] probability that a project goes on from a row's category to a column's
    policy_favourite: Floats  # [U, D] the logging policy's guess of interests: one-hot of a department
    policy_noise: Floats  # [N] what the logging policy believes of popularity beyond the truth
    owned: Ints  # [O, 3] rows (user, item, time) of durable goods bought, sorted

    def changed(self, users: ArrayLike, timestamps: ArrayLike) -> Floats:
        """How far customers have drifted from their first interests and tastes to their last, 0 to 1."""
        users = np.asarray(users)
        return _sigmoid((np.asarray(timestamps) - self.change_time[users]) / self.change_span[users])

    def interests(self, users: ArrayLike, timestamps: ArrayLike) -> Floats:
        """Log interest in departments [..., D] at these times, the season included."""
        users, times = np.asarray(users), np.asarray(timestamps)
        share = self.changed(users, times)[..., None]
        angle = 2 * np.pi * ((times - START) / YEAR)[..., None]
        season = self.season[:, 0] * np.cos(angle) + self.season[:, 1] * np.sin(angle)
        own: Floats = (1 - share) * self.interest_before[users] + share * self.interest_after[users]
        result: Floats = own + season
        return result

    def affinity(self, users: ArrayLike, items: ArrayLike, timestamps: ArrayLike) -> Floats:
        """How much customers like these items among others of the same category: taste, price, fame, novelty."""
        users, items, times = np.asarray(users), np.asarray(items), np.asarray(timestamps)
        share = self.changed(users, times)[..., None]
        taste = (1 - share) * self.taste_before[users] + share * self.taste_after[users]
        taste = taste + COUNTRY_WEIGHT * self.country_taste[self.country[users]]
        look = np.einsum("...v,...v->...", taste, self.vectors[items])
        distance = self.item_price_level[items] - self.price_level[users]
        price = PRICE_WEIGHT * self.price_strictness[users] * distance**2
        age = np.maximum(times - self.released[items], 0) / 86_400
        novelty = np.where(self.released[items] > START, np.exp(-age / NOVELTY_DAYS), 0.0)
        result: Floats = look - price + POPULARITY_WEIGHT * self.popularity[items] + NOVELTY_WEIGHT * novelty
        return result

    def complementarity(self, items: ArrayLike, others: ArrayLike) -> Floats:
        """Probability that a project goes on from the category of `items` to that of `others`."""
        result: Floats = self.complements[self.category[np.asarray(items)], self.category[np.asarray(others)]]
        return result

    def click_probability(
        self,
        users: ArrayLike,
        items: ArrayLike,
        timestamps: ArrayLike,
        *,
        slots: ArrayLike = 1,
        last_items: ArrayLike = -1,
    ) -> Floats:
        """P(click | the item stands in `slots`, 1..6). `last_items`: the customer's last item, -1 for none."""
        users, items, last = np.asarray(users), np.asarray(items), np.asarray(last_items)
        interest = self.interests(users, timestamps)
        interest = interest - interest.mean(axis=-1, keepdims=True)
        wide = np.broadcast_shapes(interest.shape[:-1], items.shape)
        own = np.take_along_axis(
            np.broadcast_to(interest, (*wide, interest.shape[-1])),
            np.broadcast_to(self.department[items], wide)[..., None],
            axis=-1,
        )[..., 0]
        context = np.where(last >= 0, self.complementarity(last, items), 0.0)
        logit = CLICK_SCALE * self.affinity(users, items, timestamps) + CLICK_INTEREST * own
        probability = _sigmoid(CLICK_BIAS + logit + CLICK_COMPLEMENT * context)
        seen: Floats = EXAMINATION[np.asarray(slots) - 1] * probability
        return seen

    def purchase_probability(self, users: ArrayLike, items: ArrayLike, timestamps: ArrayLike) -> Floats:
        """P(purchase | click). Expensive items within a category are looked at more often than bought."""
        users, items = np.asarray(users), np.asarray(items)
        dear = np.maximum(self.item_price_level[items] - self.price_level[users], 0)
        return _sigmoid(BUY_BIAS + BUY_SCALE * self.affinity(users, items, timestamps) - BUY_PRICE * dear)

    def available(self, users: ArrayLike, timestamps: ArrayLike) -> Bools:
        """[B, N]: released, sold in the customer's country, and not a durable good the customer owns already."""
        users, times = np.atleast_1d(np.asarray(users)), np.atleast_1d(np.asarray(timestamps))
        open_now: Bools = (self.released <= times[:, None]) & self.sold_in[:, self.country[users]].T
        first, last = (np.searchsorted(self.owned[:, 0], users, side=side) for side in ("left", "right"))
        rows = np.repeat(np.arange(len(users)), last - first)
        purchases = self.owned[_ranges(first, last)]
        bought = purchases[:, 2] < times[rows]
        open_now[rows[bought], purchases[bought, 1]] = False
        return open_now

    def policy_probabilities(self, users: ArrayLike, timestamps: ArrayLike, *, policy: str = "segment") -> Floats:
        """[B, N]: probability that the logging policy puts an item into slot 1.

        Later slots are drawn by the same probabilities without what stands above (Plackett-Luce), so an item's
        propensity is its probability here over one minus those of the items above it.
        """
        users, times = np.atleast_1d(np.asarray(users)), np.atleast_1d(np.asarray(timestamps))
        free = self.available(users, times)
        uniform: Floats = free / free.sum(axis=1, keepdims=True)
        if policy == "uniform":
            return uniform
        if policy != "segment":
            raise ValueError(f"policy {policy!r}: the shop logs {' and '.join(POLICIES)}")
        weights = np.where(free, np.exp(self.policy_scores(users)), 0.0)
        mixed: Floats = (1 - EXPLORATION) * weights / weights.sum(axis=1, keepdims=True) + EXPLORATION * uniform
        return mixed

    def policy_scores(self, users: ArrayLike) -> Floats:
        """[B, N]: what the segment policy's softmax goes by: believed popularity and the favourite department."""
        favourite = self.policy_favourite[np.asarray(users)][:, self.department]
        result: Floats = self.popularity + self.policy_noise + 1.5 * favourite
        return result


def _sigmoid(values: Any) -> Floats:
    result: Floats = 1 / (1 + np.exp(-values))
    return result


def _ranges(first: Ints, last: Ints) -> Ints:
    """All indices of the half-open ranges first..last, one range after the other."""
    lengths = last - first
    starts = np.cumsum(lengths) - lengths
    result: Ints = np.arange(lengths.sum()) - np.repeat(starts - first, lengths)
    return result
