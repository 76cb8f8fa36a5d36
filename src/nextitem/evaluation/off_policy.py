"""Off-policy estimates: how many clicks a policy would get, from lists that another policy explored.

Each logged list has, for each slot, the probability with which its item was selected given the items above (its
propensity). With w_s = target probability / propensity and W_s = w_1 ... w_s, the reward of a list of K slots under the
target is estimated by

* `ips`: the mean of W_K times the reward of the list. Unbiased for any behaviour of users (Horvitz and Thompson 1952).
* `snips`: the same, divided by the mean of W_K. A small bias for a much smaller variance (Swaminathan and Joachims
  2015).
* `clipped-ips`, `sg-ips`: the same with W_K cut at a limit, or shrunk so that its tail is that of a Gaussian.
* `rips`: the mean of sum_s W_s r_s. Unbiased if the reward of a slot depends on this slot and those above (McInerney et
  al. 2020).
* `iips`: the mean of sum_s w_s r_s, where w_s is the ratio of the probabilities over all lists. Unbiased if the reward
  of a slot depends on nothing but its item and place (Li et al. 2018). If the log has no such probabilities, those
  given the items above are used: exact if the target's do not depend on the items above, else a small bias.
* `dm`: the prediction of a reward model under the target, without weights. As good as the model.
* `dr`: `rips` for the part that a reward model does not predict, plus the prediction under the target (cascade doubly
  robust, Kiyohara et al. 2022). As unbiased as `rips`, with less variance if the model is good. If the prediction is
  over all lists of the target, it is right if either the weights or the model are.
* `sndr`: the same, with W_s divided by its mean.
* `switch-dr`, `dros`, `sg-dr`: the same, with W_s set to 0 above a limit, or shrunk in two ways.

The limits are selected from the data (importance_weights.py). A single action is a list of one slot, where `rips` and
`iips` equal `ips`.

Shapes: B lists, K slots, S slots that weights belong to: K, or 1 for a whole list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nextitem.evaluation.importance_weights import (
    Change,
    bias_bound,
    clipped,
    least_error,
    limits_of,
    shrunk,
    sub_gaussian,
    switched,
)
from nextitem.evaluation.logged_lists import LoggedLists, TargetPolicy, check_lists
from nextitem.evaluation.rates import Ratio, margin, ratio, sums
from nextitem.evaluation.reward_model import Predictions, predictions

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

LEAST_SIZE = 100.0  # effective number of lists below which an estimate has a warning
LARGEST_SHARE = 0.1  # share of all weights that one list may have without a warning
# Distance of the mean weight from 1 that has a warning, in half widths of its 95% interval: 1 of 1,000 right logs.
MEAN_DISTANCE = 1.7
MODEL_ERROR = "The interval does not contain errors of the reward model."

# Estimators that change large weights: the estimator whose weights they change, and how.
CHANGES: Mapping[str, tuple[str, Change]] = {
    "clipped-ips": ("ips", clipped),
    "sg-ips": ("ips", sub_gaussian),
    "switch-dr": ("dr", switched),
    "dros": ("dr", shrunk),
    "sg-dr": ("dr", sub_gaussian),
}
NORMALISED = {"snips": "ips", "sndr": "dr"}  # estimators that divide the weights of another one by their mean
ORDER = ("ips", "snips", *list(CHANGES)[:2], "rips", "iips", "dm", "dr", "sndr", *list(CHANGES)[2:])


@dataclass(frozen=True)
class Estimate:
    """An estimate of the mean reward of a list.

    Attributes:
        estimator: name of the estimator.
        reward: the estimate with its 95% interval, by users; with a limit, it contains the possible bias.
        gain: the estimate minus the mean reward of the logged lists, with its 95% interval.
        effective_size: number of lists of equal weight that would be as uncertain, at the slot where it is smallest.
        largest_weight: largest weight of a list, in any slot; 1 without weights.
        limit: limit of the weights, for the estimators that have one; infinite: no weight was changed.
        warnings: why the estimate should not be relied on, a sentence each; none: nothing speaks against it.

    """

    estimator: str
    reward: Ratio
    gain: Ratio
    effective_size: float
    largest_weight: float
    limit: float | None
    warnings: list[str]


@dataclass(frozen=True, eq=False)
class _Weighted:
    """An estimator as the mean of base + sum_s weights_s * rewards_s.

    Attributes:
        weights: weights of the lists, [B, S].
        rewards: what the weights multiply, [B, S], 0 in padding.
        is_used: where there is a slot, [B, S].
        base: what is added without weights, [B].

    """

    weights: Floats
    rewards: Floats
    is_used: Bools
    base: Floats

    def values(self) -> Floats:
        """Return the values of the lists, whose mean is the estimate, [B]."""
        result: Floats = self.base + (self.weights * self.rewards).sum(1)
        return result

    def normalised(self) -> tuple[Floats, float] | None:
        """Return values that are the estimate with normalised weights to first order, [B], and that estimate.

        None: a slot has no list with a weight.
        """
        used = self.weights * self.is_used
        totals, counts = used.sum(0), self.is_used.sum(0)
        has_slot = counts > 0
        if not (totals[has_slot] > 0).all():
            return None
        factors = np.where(has_slot, counts / np.where(has_slot, totals, 1), 0.0)
        means = (used * self.rewards).sum(0) * factors / np.maximum(counts, 1)
        moved = used * factors * (self.rewards - means) + means * self.is_used
        values: Floats = self.base + moved.sum(1)
        return values, float(values.mean())


def estimates(logged: LoggedLists, target: TargetPolicy, *, predicted: Predictions | None = None) -> list[Estimate]:
    """Return the estimates of the mean reward of a list under the target policy, by all estimators.

    `snips` and `sndr` are missing if all weights are 0; `dm` if no expected reward over all lists is known.

    Args:
        logged: the lists of the log.
        target: the policy.
        predicted: rewards that another model predicts; None: those of `reward_model`. A model that has learned from the
            logged lists themselves biases `dr` and all that are derived from it.

    Raises:
        UserError: no list has a propensity below 1, a propensity is 0, or a probability is not between 0 and 1.

    """
    check_lists(logged, target)
    predicted = predictions(logged, target) if predicted is None else predicted
    plain = _estimators(logged, target, predicted)
    result = {
        name: _estimate(name, each.values(), float(each.values().mean()), each, logged) for name, each in plain.items()
    }
    for name, former in NORMALISED.items():
        normalised = plain[former].normalised()
        if normalised is not None:
            result[name] = _estimate(name, *normalised, plain[former], logged)
    for name, (former, change) in CHANGES.items():
        result[name] = _limited(name, plain[former], change, logged)
    if predicted.is_overall and predicted.knows_items:
        ones = replace(plain["dr"], weights=np.ones_like(plain["dr"].weights))
        direct = _estimate("dm", ones.base, float(ones.base.mean()), ones, logged)
        result["dm"] = replace(direct, warnings=[MODEL_ERROR, *direct.warnings])
    return [result[name] for name in ORDER if name in result]


def by_user(values: Floats, value: float, users: Ints, *, bias: float = 0.0) -> Ratio:
    """Return a mean of lists with its interval, which counts users, for a bias of at most `bias`."""
    _, numbers = np.unique(users, return_inverse=True)
    half = math.hypot(margin(sums(values - value, numbers) / len(values)), bias)
    return Ratio(value, value - half, value + half)


def _estimators(logged: LoggedLists, target: TargetPolicy, predicted: Predictions) -> dict[str, _Weighted]:
    """Return the estimators whose weights are those of the policies, without a change."""
    is_item, rewards = logged.is_item, np.where(logged.is_item, logged.rewards, 0.0)
    slot_weights = np.where(is_item, target.probabilities / np.where(is_item, logged.propensities, 1.0), 1.0)
    weights = np.cumprod(slot_weights, axis=1).astype(np.float64)
    overall_weights = slot_weights
    if logged.overall_propensities is not None and target.overall_probabilities is not None:
        overall_weights = target.overall_probabilities / np.where(is_item, logged.overall_propensities, 1.0)
        overall_weights = np.where(is_item, overall_weights, 1.0)
    zeros, whole = np.zeros(len(rewards)), np.ones((len(rewards), 1), dtype=np.bool_)
    before = np.ones_like(weights)
    if not predicted.is_overall:
        before[:, 1:] = weights[:, :-1]
    expected: Floats = (before * np.where(is_item, predicted.expected, 0.0)).sum(1)
    residuals = np.where(is_item, rewards - predicted.logged, 0.0)
    return {
        "ips": _Weighted(weights[:, -1:], rewards.sum(1, keepdims=True), whole, zeros),
        "rips": _Weighted(weights, rewards, is_item, zeros),
        "iips": _Weighted(overall_weights, rewards, is_item, zeros),
        "dr": _Weighted(weights, residuals, is_item, expected),
    }


def _limited(name: str, former: _Weighted, change: Change, logged: LoggedLists) -> Estimate:
    """Return the estimate with changed weights, at the limit that the data selects."""
    limits = limits_of(former.weights[former.is_used])
    candidates = [replace(former, weights=change(former.weights, limit)) for limit in limits]
    values = [each.values() for each in candidates]
    index = least_error(values, logged.users)
    mean = float(values[index].mean())
    result = _estimate(name, values[index], mean, candidates[index], logged, former=former)
    return replace(result, limit=limits[index])


def _estimate(
    name: str, values: Floats, value: float, used: _Weighted, logged: LoggedLists, *, former: _Weighted | None = None
) -> Estimate:
    """Return an estimate.

    Args:
        name: name of the estimator.
        values: values of the lists, whose mean it is to first order, [B].
        value: the estimate.
        used: the estimator with its weights.
        logged: the lists.
        former: the estimator before large weights were changed; None: none was.

    """
    total = np.where(logged.is_item, logged.rewards, 0.0).sum(1)
    weights = np.where(used.is_used, used.weights, np.nan)
    totals, squares = np.nansum(weights, axis=0), np.nansum(weights**2, axis=0)
    sizes = totals**2 / np.where(squares > 0, squares, 1)
    slot = int(sizes.argmin())
    unchanged, bias = weights, 0.0
    if former is not None:
        unchanged = np.where(used.is_used, former.weights, np.nan)
        bias = bias_bound(values, former.values(), logged.users)
    return Estimate(
        name,
        by_user(values, value, logged.users, bias=bias),
        by_user(values - total, value - float(total.mean()), logged.users, bias=bias),
        float(sizes[slot]),
        float(np.nanmax(weights)),
        None,
        _warnings(weights[:, slot], unchanged[:, slot], float(sizes[slot]), logged.users),
    )


def _warnings(weights: Floats, unchanged: Floats, size: float, users: Ints) -> list[str]:
    """Return why weights [B] (NaN: none), which were `unchanged` [B] once, should not be relied on."""
    is_present = ~np.isnan(weights)
    weights, unchanged = weights[is_present], unchanged[is_present]
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
    mean = ratio(sums(unchanged, numbers), sums(np.ones(len(unchanged)), numbers))
    distance = MEAN_DISTANCE * (mean.high - mean.value)
    if mean.value + distance < 1:
        result.append(
            f"The mean weight is {mean.value:.2f} instead of 1: the target policy selects items that the log never "
            "shows, and the estimate lacks their rewards."
        )
    if mean.value - distance > 1:
        result.append(f"The mean weight is {mean.value:.2f} instead of 1: propensities or probabilities are wrong.")
    return result
