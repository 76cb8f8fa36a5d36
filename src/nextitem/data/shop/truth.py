"""Ground truth of the simulated shop: preferences of customers, and the true probabilities of clicks and purchases.

The simulation samples from these functions and from nothing else, so estimates from its log (calibration, off-policy
value, complements) can be compared with them.
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
YEAR = 365 * 86_400  # seconds
NUM_SLOTS = 6  # number of items of a slate
EXAMINATION = np.array([1.0, 0.78, 0.6, 0.47, 0.38, 0.31])  # probability that a customer examines each slot
POLICIES = ("segment", "uniform")
EXPLORATION = 0.2  # share of the uniform policy in the segment policy: importance weights stay below 1 / 0.2

POPULARITY_WEIGHT = 1.3
PRICE_WEIGHT = 1.1  # loss of appeal per squared unit between an item's price level and the customer's
NOVELTY_WEIGHT = 1.8
NOVELTY_DAYS = 30.0  # number of days in which the novelty appeal of an item falls by a factor e
COUNTRY_WEIGHT = 0.6
CLICK_BIAS, CLICK_SCALE, CLICK_INTEREST, CLICK_COMPLEMENT = -2.6, 0.45, 0.55, 1.8
BUY_BIAS, BUY_SCALE, BUY_PRICE = -1.3, 0.3, 0.35


@dataclass(frozen=True, eq=False)
class ShopTruth:
    """Latent variables of the shop. N items, U users, C categories, D departments, S styles, V latent width.

    Users and items are row numbers of the shop's users and items frames (from 0), times are in seconds. Arguments
    broadcast against each other like numpy arrays: `users[:, None]` with `items` [N] returns [B, N].
    """

    category: Ints  # [N] index into shop_words.CATEGORIES
    department: Ints  # [N] index into shop_words.DEPARTMENTS
    style: Ints  # [N] index of the style of an item
    brand: Ints  # [N] index of the brand of an item
    vectors: Floats  # [N, V] look of an item: the sum of vectors of style, brand and item
    item_price_level: Floats  # [N] log price relative to the category; standard deviation about 1
    popularity: Floats  # [N] log popularity: appeal of an item that is the same for all customers
    released: Ints  # [N] release time in seconds
    consumable: Bools  # [N] whether an item is used up, and bought again
    sold_in: Bools  # [N, countries] whether an item is sold in a country
    country: Ints  # [U] index of the country of a customer
    country_taste: Floats  # [countries, V] part of the taste that customers of a country share
    interest_before: Floats  # [U, D] log interest in departments before the customer changes ...
    interest_after: Floats  # [U, D] ... and after
    taste_before: Floats  # [U, V] taste in looks before the customer changes ...
    taste_after: Floats  # [U, V] ... and after
    change_time: Floats  # [U] time of the middle of the change, in seconds
    change_span: Floats  # [U] duration of the change, in seconds
    season: Floats  # [D, 2] weights of cosine and sine of the year
    price_level: Floats  # [U] the price level that a customer prefers
    price_strictness: Floats  # [U] factor on PRICE_WEIGHT
    complements: Floats  # [C, C] probability that a project continues from a row's category to a column's
    policy_favourite: Floats  # [U, D] the logging policy's guess of interests: one-hot of a department
    policy_noise: Floats  # [N] error of the logging policy's estimate of popularity
    owned: Ints  # [O, 3] purchases of durable goods, sorted rows (user, item, time)

    def change_progress(self, users: ArrayLike, timestamps: ArrayLike) -> Floats:
        """Return the progress of each customer's change from the first interests and tastes to the last, 0 to 1."""
        users = np.asarray(users)
        return _sigmoid((np.asarray(timestamps) - self.change_time[users]) / self.change_span[users])

    def interests(self, users: ArrayLike, timestamps: ArrayLike) -> Floats:
        """Return the log interest in departments [..., D] at these times, including the season."""
        users, times = np.asarray(users), np.asarray(timestamps)
        share = self.change_progress(users, times)[..., None]
        angle = 2 * np.pi * ((times - START) / YEAR)[..., None]
        season = self.season[:, 0] * np.cos(angle) + self.season[:, 1] * np.sin(angle)
        interest: Floats = (1 - share) * self.interest_before[users] + share * self.interest_after[users]
        result: Floats = interest + season
        return result

    def tastes(self, users: ArrayLike, timestamps: ArrayLike) -> Floats:
        """Return the own taste in looks [..., V] at these times, without the part that the country shares."""
        users = np.asarray(users)
        share = self.change_progress(users, timestamps)[..., None]
        result: Floats = (1 - share) * self.taste_before[users] + share * self.taste_after[users]
        return result

    def affinity(self, users: ArrayLike, items: ArrayLike, timestamps: ArrayLike) -> Floats:
        """Return the appeal of items within their category: the sum of taste, price, popularity and novelty terms."""
        users, items, times = np.asarray(users), np.asarray(items), np.asarray(timestamps)
        taste = self.tastes(users, times)
        taste = taste + COUNTRY_WEIGHT * self.country_taste[self.country[users]]
        look = np.einsum("...v,...v->...", taste, self.vectors[items])
        distance = self.item_price_level[items] - self.price_level[users]
        price = PRICE_WEIGHT * self.price_strictness[users] * distance**2
        age = np.maximum(times - self.released[items], 0) / 86_400
        novelty = np.where(self.released[items] > START, np.exp(-age / NOVELTY_DAYS), 0.0)
        result: Floats = look - price + POPULARITY_WEIGHT * self.popularity[items] + NOVELTY_WEIGHT * novelty
        return result

    def complementarity(self, items: ArrayLike, others: ArrayLike) -> Floats:
        """Return the probability that a project continues from the category of `items` to that of `others`."""
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
        """Return the probability of a click on an item in a slot.

        Args:
            users: row numbers of the customers.
            items: row numbers of the items.
            timestamps: times in seconds.
            slots: slots of the items, 1..6.
            last_items: the customers' last items; -1: none.

        """
        last = np.asarray(last_items)
        context = np.where(last >= 0, self.complementarity(last, items), 0.0)
        logit = self.click_appeal(users, items, timestamps)
        probability = _sigmoid(CLICK_BIAS + logit + CLICK_COMPLEMENT * context)
        click_probability: Floats = EXAMINATION[np.asarray(slots) - 1] * probability
        return click_probability

    def click_appeal(
        self, users: ArrayLike, items: ArrayLike, timestamps: ArrayLike, *, affinity: ArrayLike = 0.0
    ) -> Floats:
        """Return the part of a click's logit that depends on customer, item and time, not on the last item.

        `affinity` is added to that of `ShopTruth.affinity`: what has moved the customer or the item since.
        """
        users, items = np.asarray(users), np.asarray(items)
        interest = self.interests(users, timestamps)
        interest = interest - interest.mean(axis=-1, keepdims=True)
        wide = np.broadcast_shapes(interest.shape[:-1], items.shape)
        department_interest = np.take_along_axis(
            np.broadcast_to(interest, (*wide, interest.shape[-1])),
            np.broadcast_to(self.department[items], wide)[..., None],
            axis=-1,
        )[..., 0]
        appeal = self.affinity(users, items, timestamps) + np.asarray(affinity)
        result: Floats = CLICK_SCALE * appeal + CLICK_INTEREST * department_interest
        return result

    def purchase_probability(
        self, users: ArrayLike, items: ArrayLike, timestamps: ArrayLike, *, affinity: ArrayLike = 0.0
    ) -> Floats:
        """Return P(purchase | click). Expensive items of a category are viewed more often than bought.

        `affinity` is added to that of `ShopTruth.affinity`.
        """
        users, items = np.asarray(users), np.asarray(items)
        overprice = np.maximum(self.item_price_level[items] - self.price_level[users], 0)
        appeal = self.affinity(users, items, timestamps) + np.asarray(affinity)
        return _sigmoid(BUY_BIAS + BUY_SCALE * appeal - BUY_PRICE * overprice)

    def available(self, users: ArrayLike, timestamps: ArrayLike) -> Bools:
        """Return which items are available to each customer, bool [B, N].

        Available items are released, sold in the customer's country, and not a durable good that the customer owns.
        """
        users, times = np.atleast_1d(np.asarray(users)), np.atleast_1d(np.asarray(timestamps))
        is_available: Bools = (self.released <= times[:, None]) & self.sold_in[:, self.country[users]].T
        first, last = (np.searchsorted(self.owned[:, 0], users, side=side) for side in ("left", "right"))
        rows = np.repeat(np.arange(len(users)), last - first)
        purchases = self.owned[_ranges(first, last)]
        is_owned = purchases[:, 2] < times[rows]
        is_available[rows[is_owned], purchases[is_owned, 1]] = False
        return is_available

    def policy_probabilities(self, users: ArrayLike, timestamps: ArrayLike, *, policy: str = "segment") -> Floats:
        """Return the probability that the logging policy puts an item into slot 1, [B, N].

        Later slots are sampled with the same probabilities, without the items in earlier slots (Plackett-Luce). So an
        item's propensity is its probability / (1 - the sum of the probabilities of the items in earlier slots).
        """
        users, times = np.atleast_1d(np.asarray(users)), np.atleast_1d(np.asarray(timestamps))
        is_available = self.available(users, times)
        uniform: Floats = is_available / is_available.sum(axis=1, keepdims=True)
        if policy == "uniform":
            return uniform
        if policy != "segment":
            raise ValueError(f"policy {policy!r}: the shop logs {' and '.join(POLICIES)}")
        weights = np.where(is_available, np.exp(self.policy_scores(users)), 0.0)
        mixed: Floats = (1 - EXPLORATION) * weights / weights.sum(axis=1, keepdims=True) + EXPLORATION * uniform
        return mixed

    def policy_scores(self, users: ArrayLike) -> Floats:
        """Return the segment policy's logits, [B, N]: estimated popularity, plus 1.5 in the favourite department."""
        favourite = self.policy_favourite[np.asarray(users)][:, self.department]
        result: Floats = self.popularity + self.policy_noise + 1.5 * favourite
        return result


def _sigmoid(values: Any) -> Floats:
    """Return 1 / (1 + exp(-x)) of each value."""
    result: Floats = 1 / (1 + np.exp(-values))
    return result


def _ranges(first: Ints, last: Ints) -> Ints:
    """Return all indices of the half-open ranges first..last, one range after the other."""
    lengths = last - first
    starts = np.cumsum(lengths) - lengths
    result: Ints = np.arange(lengths.sum()) - np.repeat(starts - first, lengths)
    return result
