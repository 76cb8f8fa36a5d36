"""Off-policy estimates: how many clicks a policy would get, from lists that another policy explored.

Each logged list has, for each slot, the probability with which its item was selected given the items above (its
propensity). With w_s = target probability / propensity and W_s = w_1 ... w_s, the reward of a list of K slots under the
target is estimated by

* `ips`: the mean of W_K times the reward of the list. Unbiased for any behaviour of users (Horvitz and Thompson 1952).
* `snips`: the same, divided by the mean of W_K. A small bias for a much smaller variance (Swaminathan and Joachims
  2015).
* `rips`: the mean of sum_s W_s r_s. Unbiased if the reward of a slot depends on this slot and those above (McInerney et
  al. 2020).
* `iips`: the mean of sum_s w_s r_s. Unbiased if the reward of a slot depends on nothing but its item and place, and the
  target's probability of an item does not depend on which items are above; else a small bias (Li et al. 2018).
* `dr`: `rips` for the part that a reward model does not predict, plus the prediction under the target (cascade doubly
  robust, Kiyohara et al. 2022). As unbiased as `rips`, with less variance if the model is good.

Shapes: B lists, K slots, C candidates of a list, N items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nextitem.core.errors import UserError
from nextitem.evaluation.rates import Floats, Ratio, margin, ratio, sums

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

NO_EXPLORATION = (
    "the log has no exploration: every propensity is 1, so it cannot tell how other lists would do; serve with "
    "exploration for a while"
)
FOLDS = 5  # parts of the users; the reward model of a part has learned from the others
PRIOR_REWARDS = 3.0  # expected rewards that weigh as much as what is known of an item
LEAST_SIZE = 100.0  # effective number of lists below which an estimate has a warning
LARGEST_SHARE = 0.1  # share of all weights that one list may have without a warning


@dataclass(frozen=True, eq=False)
class LoggedLists:
    """Lists that were shown with propensities below 1, and their rewards; shorter lists are padded at the end.

    Attributes:
        rewards: rewards of the slots, [B, K], 0 in padding.
        propensities: probability of each slot's item given the items above, [B, K], 1 in padding.
        items: numbers of the items from 0, [B, K], any number in padding.
        is_item: whether a slot is no padding, [B, K].
        users: numbers of the users from 0, [B].

    """

    rewards: Floats
    propensities: Floats
    items: Ints
    is_item: Bools
    users: Ints


@dataclass(frozen=True, eq=False)
class TargetPolicy:
    """What a policy would have done where the logged lists were shown.

    Attributes:
        probabilities: its probability of each slot's logged item given the logged items above, [B, K], 1 in padding.
        candidates: numbers of the items that it selects from, [B, C]; None: unknown.
        distributions: its probability of each candidate in each slot given the logged items above, [B, K, C]; None:
            unknown. The reward model then knows slots only, not items.

    """

    probabilities: Floats
    candidates: Ints | None = None
    distributions: Floats | None = None


@dataclass(frozen=True)
class Estimate:
    """An estimate of the mean reward of a list.

    Attributes:
        estimator: ips, snips, rips, iips or dr.
        reward: the estimate with its 95% interval, by users.
        gain: the estimate minus the mean reward of the logged lists, with its 95% interval.
        effective_size: number of lists of equal weight that would be as uncertain, at the slot where it is smallest.
        warnings: why the estimate should not be relied on, a sentence each; none: nothing speaks against it.

    """

    estimator: str
    reward: Ratio
    gain: Ratio
    effective_size: float
    warnings: list[str]


@dataclass(frozen=True)
class OffPolicyReport:
    """Estimates for one policy.

    Attributes:
        outcome: the outcome that is counted: reward of a list is its number of items with it.
        lists: number of lists that the estimates are made from.
        logged: mean reward of these lists, with its 95% interval.
        estimates: estimates for the policy.
        notes: what was left out, a sentence each.

    """

    outcome: str
    lists: int
    logged: Ratio
    estimates: list[Estimate]
    notes: list[str]


def estimates(logged: LoggedLists, target: TargetPolicy) -> list[Estimate]:
    """Return the estimates of the mean reward of a list under the target policy, by all estimators.

    Raises:
        UserError: no list has a propensity below 1, or a propensity is 0.

    """
    _check(logged, target)
    is_item, rewards = logged.is_item, np.where(logged.is_item, logged.rewards, 0.0)
    slot_weights = np.where(is_item, target.probabilities / np.where(is_item, logged.propensities, 1.0), 1.0)
    weights = np.cumprod(slot_weights, axis=1).astype(np.float64)
    total, whole = rewards.sum(1), weights[:, -1]
    predicted, expected = _predictions(logged, target)
    before = np.concatenate([np.ones((len(whole), 1)), weights[:, :-1]], axis=1)
    doubly = (weights * (rewards - predicted) + before * expected) * is_item
    linear: dict[str, tuple[Floats, Floats]] = {
        "ips": (whole * total, whole[:, None]),
        "rips": ((weights * rewards).sum(1), weights),
        "iips": ((slot_weights * rewards).sum(1), slot_weights),
        "dr": (doubly.sum(1), weights),
    }
    result = [_estimate(name, values, float(values.mean()), used, logged) for name, (values, used) in linear.items()]
    if whole.sum() > 0:
        value = float((whole * total).sum() / whole.sum())
        influences = value + whole * (total - value) / whole.mean()
        result.insert(1, _estimate("snips", influences, value, whole[:, None], logged))
    return result


def off_policy_report(impressions: pl.DataFrame, target: pl.DataFrame, *, outcome: str) -> OffPolicyReport:
    """Return the estimates for a policy whose probabilities are in a table.

    Args:
        impressions: rows of the log, with propensity, slot, and the outcome as a boolean column (`attribution`).
        target: impression_id, slot, probability: the policy's probability of the item that was shown in this slot,
            given the items above it. Lists of the log that it does not contain are left out.
        outcome: the outcome to count.

    Raises:
        UserError: the log has no propensities or no exploration, or the table lacks a slot of a list that it contains.

    """
    logged, probabilities, notes = _explored_lists(impressions, target, outcome)
    values = np.where(logged.is_item, logged.rewards, 0.0).sum(1)
    result = estimates(logged, TargetPolicy(probabilities))
    return OffPolicyReport(outcome, len(values), _by_user(values, float(values.mean()), logged.users), result, notes)


def plackett_luce(scores: Floats, places: Ints) -> tuple[Floats, Floats]:
    """Return the probabilities with which a list is drawn without replacement, by the softmax of scores.

    Args:
        scores: scores of the candidates over the temperature, [B, C]; -inf: none.
        places: place of each slot's item among the candidates, [B, K].

    Returns:
        The probability of each item given those above, [B, K], and that of every candidate, [B, K, C].

    """
    rows, rest = np.arange(len(scores)), scores.astype(np.float64)
    distributions = np.empty((*places.shape, scores.shape[1]))
    for slot in range(places.shape[1]):
        powers = np.exp(rest - rest.max(1, keepdims=True))
        distributions[:, slot] = powers / powers.sum(1, keepdims=True)
        rest[rows, places[:, slot]] = -np.inf
    return np.take_along_axis(distributions, places[..., None], axis=2)[..., 0], distributions


@dataclass(frozen=True, eq=False)
class RewardModel:
    """Predicts the reward of an item in a slot: the mean reward of the slot times a factor of the item.

    Attributes:
        slots: mean reward of each slot, [K].
        factors: rewards of each item over those that its slots would have, shrunk to 1, [N].

    """

    slots: Floats
    factors: Floats

    @classmethod
    def fit(cls, logged: LoggedLists, rows: Bools, *, num_items: int) -> RewardModel:
        """Return the model of the logged lists `rows` [B]."""
        is_item, rewards = logged.is_item[rows], logged.rewards[rows]
        slots = (rewards * is_item).sum(0) / np.maximum(is_item.sum(0), 1)
        items = logged.items[rows][is_item]
        usual = np.broadcast_to(slots, is_item.shape)[is_item]
        rewards_by_item = np.bincount(items, weights=rewards[is_item], minlength=num_items)
        usual_by_item = np.bincount(items, weights=usual, minlength=num_items)
        return cls(slots, (rewards_by_item + PRIOR_REWARDS) / (usual_by_item + PRIOR_REWARDS))

    def predict(self, items: Ints) -> Floats:
        """Return the predicted rewards of items [B, K] in slots 1..K, or [B, 1, C] of candidates in each slot."""
        factors = self.factors[items]
        result: Floats = self.slots[:, None] * factors if items.ndim == 3 else self.slots * factors
        return result


def _predictions(logged: LoggedLists, target: TargetPolicy) -> tuple[Floats, Floats]:
    """Return the predicted reward of each logged item, and the expected prediction under the target, [B, K] each.

    A list is predicted by a model that has learned from other users only.
    """
    largest = logged.items.max(initial=0) if target.candidates is None else target.candidates.max(initial=0)
    num_items = int(max(largest, logged.items.max(initial=0))) + 1
    predicted, expected = np.zeros(logged.rewards.shape), np.zeros(logged.rewards.shape)
    for fold in range(FOLDS):
        rows = logged.users % FOLDS == fold
        if not rows.any():
            continue
        model = RewardModel.fit(logged, ~rows, num_items=num_items)
        if target.candidates is None or target.distributions is None:
            predicted[rows] = expected[rows] = model.slots
        else:
            predicted[rows] = model.predict(logged.items[rows])
            of_candidates = model.predict(target.candidates[rows][:, None, :])
            expected[rows] = (target.distributions[rows] * of_candidates).sum(2)
    return predicted, expected


def _estimate(name: str, values: Floats, value: float, weights: Floats, logged: LoggedLists) -> Estimate:
    """Return an estimate from the values of the lists, whose mean it is to first order, [B]."""
    total = np.where(logged.is_item, logged.rewards, 0.0).sum(1)
    used = np.where(logged.is_item[:, : weights.shape[1]] | (weights.shape[1] == 1), weights, np.nan)
    totals, squares = np.nansum(used, axis=0), np.nansum(used**2, axis=0)
    sizes = totals**2 / np.where(squares > 0, squares, 1)
    slot = int(sizes.argmin())
    return Estimate(
        name,
        _by_user(values, value, logged.users),
        _by_user(values - total, value - float(total.mean()), logged.users),
        float(sizes[slot]),
        _warnings(used[:, slot], float(sizes[slot]), logged.users),
    )


def _by_user(values: Floats, value: float, users: Ints) -> Ratio:
    """Return a mean of lists with its interval, which counts users."""
    _, numbers = np.unique(users, return_inverse=True)
    half = margin(sums(values - value, numbers) / len(values))
    return Ratio(value, value - half, value + half)


def _warnings(weights: Floats, size: float, users: Ints) -> list[str]:
    """Return why weights [B] (NaN: none) should not be relied on."""
    is_present = ~np.isnan(weights)
    weights = weights[is_present]
    if not weights.sum() > 0:
        return ["No logged list could be one of the target policy."]
    result = []
    if size < LEAST_SIZE:
        result.append(
            f"The weights differ so much that {len(weights):,} lists count as {size:,.0f}: too few for an interval."
        )
    share = float(weights.max() / weights.sum())
    if share > LARGEST_SHARE:
        result.append(f"One list has {share:.0%} of all weight.")
    _, numbers = np.unique(users[is_present], return_inverse=True)
    mean = ratio(sums(weights, numbers), sums(np.ones(len(weights)), numbers))
    if mean.high < 1:
        result.append(
            f"The mean weight is {mean.value:.2f} instead of 1: the target policy selects items that the log never "
            "shows, and the estimate lacks their rewards."
        )
    if mean.low > 1:
        result.append(f"The mean weight is {mean.value:.2f} instead of 1: propensities or probabilities are wrong.")
    return result


def _explored_lists(
    impressions: pl.DataFrame, target: pl.DataFrame, outcome: str
) -> tuple[LoggedLists, Floats, list[str]]:
    """Return the lists in which chance had a part, the target's probabilities, and notes on what is left out."""
    for table, frame, columns in (
        ("the log", impressions, ("propensity", "slot")),
        ("the table of the target policy", target, ("impression_id", "slot", "probability")),
    ):
        for column in columns:
            if column not in frame:
                raise UserError(f"{table} has no column {column!r}, which off-policy estimates need")
    is_explored = (pl.col("propensity") < 1).any().over("impression_id")
    explored = impressions.filter(is_explored)
    if not explored.height:
        raise UserError(NO_EXPLORATION)
    probabilities = target.select(
        pl.col("impression_id").cast(pl.String), pl.col("slot").cast(pl.Int32), pl.col("probability").cast(pl.Float64)
    ).unique(["impression_id", "slot"], keep="first", maintain_order=True)
    rows = explored.join(probabilities.select("impression_id").unique(), on="impression_id", how="semi")
    if not rows.height:
        raise UserError("the table of the target policy contains no list of the log that was explored")
    rows = rows.with_columns(pl.col("slot").cast(pl.Int32)).join(
        probabilities, on=["impression_id", "slot"], how="left"
    )
    lacking = rows.filter(pl.col("probability").is_null())
    if lacking.height:
        where = f"impression_id {lacking['impression_id'][0]!r}, slot {lacking['slot'][0]}"
        raise UserError(f"the table of the target policy lacks {where}; write a row for each slot of a list")
    num_lists, num_all = rows["impression_id"].n_unique(), impressions["impression_id"].n_unique()
    notes = []
    if num_lists < num_all:
        notes.append(
            f"{num_lists:,} of {num_all:,} lists count: those in which chance had a part, and for which there are "
            "probabilities of the target policy."
        )
    rows = rows.sort("impression_id", "slot").with_columns(
        pl.col("impression_id").rank("dense").cast(pl.Int64).alias("#list") - 1,
        pl.int_range(pl.len()).over("impression_id").alias("#place"),
        pl.coalesce("user_id", pl.lit("\0") + pl.col("impression_id")).rank("dense").cast(pl.Int64).alias("#user") - 1,
        pl.col("item_id").rank("dense").cast(pl.Int64).alias("#item") - 1,
    )
    shape = num_lists, int(rows["#place"].max()) + 1  # type: ignore[arg-type]
    place = rows["#list"].to_numpy(), rows["#place"].to_numpy()

    def padded(name: str, padding: float) -> Floats:
        result = np.full(shape, padding)
        result[place] = rows[name].cast(pl.Float64).to_numpy()
        return result

    users = rows.group_by("#list").agg(pl.col("#user").first()).sort("#list")["#user"].to_numpy()
    logged = LoggedLists(
        padded(outcome, 0.0),
        padded("propensity", 1.0),
        padded("#item", 0.0).astype(np.int64),
        padded("propensity", -1.0) >= 0,
        users,
    )
    return logged, padded("probability", 1.0), notes


def _check(logged: LoggedLists, target: TargetPolicy) -> None:
    propensities = logged.propensities[logged.is_item]
    if not (propensities < 1).any():
        raise UserError(NO_EXPLORATION)
    if not (propensities > 0).all():
        raise UserError("a propensity is 0: an item that was shown had a probability above 0; correct the log")
    probabilities = target.probabilities[logged.is_item]
    if not ((probabilities >= 0) & (probabilities <= 1)).all():  # NaN neither
        raise UserError("a probability of the target policy is not between 0 and 1")
