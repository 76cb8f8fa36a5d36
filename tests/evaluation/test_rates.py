"""Rates of clustered units: known answers, coverage by simulation, and what a naive interval would say."""

from __future__ import annotations

from math import inf, isnan

import numpy as np
import pytest

from nextitem.evaluation.rates import Floats, difference, holm, rate, ratio


def users(rng: np.random.Generator, *, mean: float, num_users: int = 120) -> tuple[Floats, Floats]:
    """Return successes and units of users with 1 to 20 lists, whose own rates differ much (beta, mean `mean`)."""
    units = rng.integers(1, 21, num_users)
    chances = rng.beta(2 * mean, 2 * (1 - mean), num_users)
    return rng.binomial(units, chances).astype(float), units.astype(float)


def test_a_rate_and_its_interval_worked_out_by_hand() -> None:
    result = rate(np.array([1.0, 0.0, 2.0]), np.array([2.0, 2.0, 4.0]))
    assert (result.value, result.successes, result.units) == (3 / 8, 3, 8)
    # Residuals (1 - 0.75, -0.75, 2 - 1.5) / 8; variance 3 / 2 * their squares; Student's quantile for 2 is 4.3027.
    error = (1.5 * (0.25**2 + 0.75**2 + 0.5**2) / 64) ** 0.5
    assert ratio(np.array([1.0, 0.0, 2.0]), np.array([2.0, 2.0, 4.0])).high == pytest.approx(3 / 8 + 4.302653 * error)
    assert 0 <= result.low < 3 / 8 < result.high <= 1


def test_one_unit_a_cluster_is_the_interval_of_wilson() -> None:
    result = rate(np.repeat([1.0, 0.0], [60, 940]), np.ones(1000))
    z, p, n = 1.9623415, 0.06, 999.0  # the variance of clusters divides by n - 1; Student's quantile for 999
    centre, half = (p + z**2 / 2 / n) / (1 + z**2 / n), z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / 4 / n**2) ** 0.5
    assert (result.low, result.high) == pytest.approx((centre - half, centre + half), abs=1e-7)


@pytest.mark.parametrize("mean", [0.03, 0.3])
def test_intervals_contain_the_true_rate_about_95_times_in_100(mean: float) -> None:
    rng, covering, naive = np.random.default_rng(0), 0, 0
    for _ in range(400):
        successes, units = users(rng, mean=mean)
        result = rate(successes, units)
        covering += result.low <= mean <= result.high
        alone = 1.96 * (result.value * (1 - result.value) / result.units) ** 0.5
        naive += abs(result.value - mean) <= alone
    assert 368 <= covering <= 396
    assert naive < 330, "these users are too alike: the test could not tell a wrong interval"


def test_differences_contain_the_true_one_about_95_times_in_100() -> None:
    rng, covering, lifts, false_calls = np.random.default_rng(1), 0, 0, 0
    for _ in range(400):
        successes, units = users(rng, mean=0.2, num_users=240)
        other, _ = users(rng, mean=0.26, num_users=240)
        other = np.minimum(other, units)
        is_first = np.arange(240) % 2 == 0
        first = successes * is_first, units * is_first
        result = difference(first, (successes * ~is_first, units * ~is_first))
        covering += result.low <= 0 <= result.high
        lifts += result.lift_low <= 0 <= result.lift_high
        false_calls += result.p_value < 0.05
    assert 368 <= covering <= 396
    assert 368 <= lifts <= 396
    assert false_calls == 400 - covering


def test_users_who_saw_both_models_are_compared_with_themselves() -> None:
    rng = np.random.default_rng(2)
    successes, units = users(rng, mean=0.3)
    paired = difference((successes, units), (successes, units))
    assert (paired.value, paired.low, paired.high, paired.lift, paired.p_value) == (0, 0, 0, 0, 1.0)
    zeros = np.zeros(120)
    apart = difference(
        (np.concatenate([successes, zeros]), np.concatenate([units, zeros])),
        (np.concatenate([zeros, successes]), np.concatenate([zeros, units])),
    )
    assert apart.value == 0
    assert apart.high > 0.03


def test_nothing_and_everything_have_an_interval_and_no_units_none() -> None:
    nothing = rate(np.zeros(50), np.full(50, 3.0))
    assert (nothing.value, nothing.low) == (0, 0)
    assert 0.05 < nothing.high < 0.1  # rule of three for 50 users would say 0.06
    everything = rate(np.full(50, 3.0), np.full(50, 3.0))
    assert everything.low == pytest.approx(1 - nothing.high)
    assert isnan(rate(np.zeros(3), np.zeros(3)).value)
    single = rate(np.array([1.0]), np.array([2.0]))
    assert (single.low, single.high) == (0, 1)
    never = difference(
        (np.array([0.0, 0.0, 0.0, 0.0]), np.array([1.0, 1, 0, 0])), (np.array([0, 0, 1.0, 0]), np.array([0, 0, 1.0, 1]))
    )
    assert (never.lift, never.lift_low, never.lift_high) == (-1, -1, inf)


def test_holm_multiplies_the_smallest_most() -> None:
    assert holm([0.03, 0.01, 0.02, 0.9]) == pytest.approx([0.06, 0.04, 0.06, 0.9])
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm's own rule by hand
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
