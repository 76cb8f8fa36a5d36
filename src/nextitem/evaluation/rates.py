"""Rates of units that come in clusters, such as clicks of lists of which a user has many, with 95% intervals.

The lists of a user resemble each other, so an interval that treats them as independent is too narrow. All variances
here are those of a ratio of two sums over clusters (Cochran 1977, chapter 6): only the number of clusters counts.
Shapes: U clusters, S strata.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, log, nan, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit
from scipy.stats import t as student

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """A ratio of two sums over clusters, with its 95% interval; NaN without units."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Rate:
    """A share of units, with its 95% interval.

    Attributes:
        value: successes / units; NaN without units.
        low: lower end of the interval, at least 0.
        high: upper end of the interval, at most 1.
        successes: number of units with a success.
        units: number of units.

    """

    value: float
    low: float
    high: float
    successes: int
    units: int


@dataclass(frozen=True)
class RateDifference:
    """How much a rate is greater than another one, absolutely and relatively, with 95% intervals.

    Attributes:
        value: the first rate minus the second.
        low: lower end of its interval.
        high: upper end of its interval.
        lift: the first rate divided by the second, minus 1; NaN if the second is 0.
        lift_low: lower end of its interval; -1 if the first rate is 0.
        lift_high: upper end of its interval; infinite if a rate is 0.
        p_value: probability of a difference at least as large if the true rates are equal; 1 if it cannot be computed.

    """

    value: float
    low: float
    high: float
    lift: float
    lift_low: float
    lift_high: float
    p_value: float


def ratio(numerators: Floats, denominators: Floats) -> Ratio:
    """Return sum(numerators) / sum(denominators) with its interval.

    Args:
        numerators: sum of each cluster, [U].
        denominators: sum of each cluster, [U], such as its number of units.

    """
    value, residuals = _linearised(numerators, denominators)
    if value != value:
        return Ratio(nan, nan, nan)
    half = margin(residuals)
    return Ratio(value, value - half, value + half)


def rate(successes: Floats, units: Floats) -> Rate:
    """Return the share of units with a success.

    The interval is Wilson's, for the number of independent units that have the variance of these clusters (Korn and
    Graubard 1998): it never leaves 0..1, and it has a width if nothing or everything succeeded.

    Args:
        successes: number of units with a success of each cluster, [U].
        units: number of units of each cluster, [U].

    """
    value, residuals = _linearised(successes, units)
    num_successes, num_units = round(float(successes.sum())), round(float(units.sum()))
    if value != value:
        return Rate(nan, nan, nan, 0, 0)
    half, quantile = _margin(residuals, len(residuals) - 1)
    if quantile == inf:
        return Rate(value, 0.0, 1.0, num_successes, num_units)
    error = half / quantile
    # If all units are equal, the clusters show no variance; then each counts as one unit.
    size = float(len(residuals)) if value in (0.0, 1.0) else value * (1 - value) / max(error**2, 1e-300)
    size, square = min(size, float(num_units)), quantile**2
    centre = (value + square / (2 * size)) / (1 + square / size)
    half = quantile / (1 + square / size) * sqrt(value * (1 - value) / size + square / (4 * size**2))
    low, high = max(0.0, min(value, centre - half)), min(1.0, max(value, centre + half))
    return Rate(value, low, high, num_successes, num_units)


def difference(first: tuple[Floats, Floats], second: tuple[Floats, Floats]) -> RateDifference:
    """Return how much greater the first rate is than the second.

    A cluster may contain units of both: a user who saw lists of two models. So both have a row for each cluster, with
    0 units if it has none.

    Args:
        first: successes and units of each cluster, [U] and [U].
        second: those of the other rate, for the same clusters in the same order.

    """
    (a, residuals_a), (b, residuals_b) = _linearised(*first), _linearised(*second)
    if a != a or b != b:
        return RateDifference(nan, nan, nan, nan, nan, nan, 1.0)
    is_present = (first[1] > 0) | (second[1] > 0)
    freedom = min(len(residuals_a), len(residuals_b)) - 1
    residuals_a, residuals_b = _spread(residuals_a, first[1]), _spread(residuals_b, second[1])
    half, quantile = _margin((residuals_a - residuals_b)[is_present], freedom)
    p_value = 1.0
    if 0 < half < inf:
        p_value = float(2 * student.sf(abs(a - b) / (half / quantile), freedom))
    lift, lift_low, lift_high = nan, nan, nan
    if b > 0:
        lift, lift_low, lift_high = a / b - 1, -1.0, inf
        if a > 0:
            log_half, _ = _margin((residuals_a / a - residuals_b / b)[is_present], freedom)
            lift_low, lift_high = exp(log(a / b) - log_half) - 1, _exponential(log(a / b) + log_half) - 1
    return RateDifference(a - b, a - b - half, a - b + half, lift, lift_low, lift_high, p_value)


def sums(values: NDArray[Any], clusters: NDArray[np.int64], *, num_clusters: int = 0) -> Floats:
    """Return the sum of the values [B] of each cluster, for clusters [B] that are numbered from 0, [U]."""
    return np.bincount(clusters, weights=values.astype(np.float64), minlength=num_clusters).astype(np.float64)


def margin(residuals: Floats) -> float:
    """Return half the width of the 95% interval of a figure that each cluster moves by its residual, [U]."""
    return _margin(residuals, len(residuals) - 1)[0]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that are adjusted for their number, in the same order (Holm 1979).

    If all of them below 0.05 are called real, the probability of any false call is at most 5%.
    """
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _linearised(numerators: Floats, denominators: Floats) -> tuple[float, Floats]:
    """Return the ratio, and how much each cluster with a denominator moves it; the ratio is NaN without any."""
    is_present = denominators != 0
    total = float(denominators.sum())
    if not is_present.any() or total == 0:
        return nan, np.empty(0)
    value = float(numerators.sum()) / total
    return value, ((numerators - value * denominators) / total)[is_present]


def _spread(residuals: Floats, denominators: Floats) -> Floats:
    """Return the residuals of all clusters, [U]: 0 for those without a denominator."""
    full = np.zeros(len(denominators))
    full[denominators != 0] = residuals
    return full


def _margin(residuals: Floats, freedom: int) -> tuple[float, float]:
    """Return half the width of the 95% interval of a sum of residuals, and its quantile, both infinite for one cluster.

    Args:
        residuals: how much each cluster moves the figure, [U].
        freedom: degrees of freedom: the number of clusters of the smaller side, minus 1.

    """
    if freedom < 1:
        return inf, inf
    quantile = float(stdtrit(freedom, 0.975))  # 100 times as fast as student.ppf
    return quantile * sqrt((freedom + 1) / freedom * float((residuals**2).sum())), quantile


def _exponential(power: float) -> float:
    return exp(power) if power < 700 else inf
