"""Scaling laws: published and planted numbers are recovered, intervals contain the truth, and scipy fits no better."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import least_squares

from nextitem.evaluation.scaling_law import HUBER, Array, ScalingLaw, fit_law, fit_with_intervals

# OneRec-V2 (arXiv 2508.20900): parameters and losses of its dense models; the paper's fit is 3.13 + 3660 / N ** 0.489.
PARAMETERS = np.array([[1e8], [2e8], [5e8], [1e9], [2e9], [4e9], [8e9]])
LOSSES = np.array([3.57, 3.46, 3.33, 3.27, 3.23, 3.20, 3.19])
PUBLISHED = ScalingLaw(3.13, (3660.0,), (0.489,))


def grid(num_sizes: int, num_shares: int) -> Array:
    """Return parameters and examples of every combination, [sizes x shares, 2]."""
    sizes, shares = np.logspace(4, 7, num_sizes), np.logspace(4, 6, num_shares)
    return np.array([(size, share) for size in sizes for share in shares])


def test_the_published_law_is_recovered_from_the_seven_published_points() -> None:
    fit = fit_with_intervals(PARAMETERS, LOSSES, range(7))
    assert fit.law.floor == pytest.approx(3.13, abs=0.005)
    assert fit.law.exponents[0] == pytest.approx(0.489, abs=0.01)
    # The coefficient is that of one parameter, nine decades away: a factor of e for each 0.05 of the exponent.
    assert math.log(fit.law.coefficients[0]) == pytest.approx(math.log(3660), abs=0.1)
    for published, (low, high) in zip(PUBLISHED.numbers(), fit.intervals(), strict=True):
        assert low < published < high
    np.testing.assert_allclose(fit.law(PARAMETERS), PUBLISHED(PARAMETERS), atol=0.003)


def test_the_largest_published_model_is_predicted_from_the_six_others() -> None:
    fit = fit_with_intervals(PARAMETERS[:6], LOSSES[:6], range(6))
    (predicted,), (low,), (high,) = fit.prediction(PARAMETERS[6:])
    assert predicted == pytest.approx(3.19, rel=0.006)
    assert low < 3.19 < high


@pytest.mark.parametrize(
    ("law", "inputs"),
    [
        (ScalingLaw(2.0, (50.0,), (0.2,)), np.logspace(10, 13, 6)[:, None]),
        (ScalingLaw(5.5, (9e4,), (0.7,)), np.logspace(9, 11, 5)[:, None]),
        (ScalingLaw(2.0, (300.0, 40.0), (0.35, 0.25)), grid(5, 3)),
    ],
)
def test_a_law_without_noise_is_recovered_exactly(law: ScalingLaw, inputs: Array) -> None:
    np.testing.assert_allclose(fit_law(inputs, law(inputs)).numbers(), law.numbers(), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("law", "inputs"),
    [
        (ScalingLaw(2.0, (50.0,), (0.2,)), np.logspace(10, 13, 7)[:, None]),
        (ScalingLaw(2.0, (300.0, 40.0), (0.35, 0.25)), grid(5, 3)),
    ],
)
def test_intervals_contain_planted_numbers_about_as_often_as_they_claim(law: ScalingLaw, inputs: Array) -> None:
    rng, num_seeds, repetitions = np.random.default_rng(0), 2, 10
    configurations = np.repeat(np.arange(len(inputs)), num_seeds)
    runs = inputs[configurations]
    hits = []
    for repetition in range(repetitions):
        losses = law(runs) * np.exp(rng.normal(0, 0.003, len(runs)))
        fit = fit_with_intervals(runs, losses, configurations.tolist(), replicates=40, seed=repetition)
        hits += [low <= true <= high for true, (low, high) in zip(law.numbers(), fit.intervals(), strict=True)]
    assert np.mean(hits) > 0.88


def test_scipy_finds_no_lower_huber_loss() -> None:
    """The fit solves many problems at once by its own steps; scipy's least squares is the reference."""
    rng = np.random.default_rng(3)
    law, inputs = ScalingLaw(3.0, (40.0,), (0.25,)), np.logspace(9, 12, 8)[:, None]
    for _ in range(2):
        losses = law(inputs) * np.exp(rng.normal(0, 0.01, 8))
        centre = np.log(inputs).mean()

        def residuals(numbers: Array, losses: Array = losses, centre: float = float(centre)) -> Any:
            part = np.exp(numbers[1] - numbers[2] * (np.log(inputs[:, 0]) - centre))
            return np.log(np.exp(numbers[0]) + part) - np.log(losses)

        starts = [(math.log(losses.min() * share), -1.0, a) for share in (0.2, 0.9) for a in (0.1, 0.3)]
        costs = [least_squares(residuals, start, loss="huber", f_scale=HUBER).cost for start in starts]
        fit = fit_law(inputs, losses)
        sizes = np.abs(np.log(fit(inputs)) - np.log(losses))
        cost = np.where(sizes <= HUBER, sizes**2 / 2, HUBER * (sizes - HUBER / 2)).sum()
        assert cost <= min(costs) * 1.001


def test_one_wrong_run_changes_less_than_under_plain_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    law, inputs = ScalingLaw(2.0, (50.0,), (0.2,)), np.logspace(10, 13, 9)[:, None]
    losses = law(inputs)
    losses[6] *= 1.2
    robust = fit_law(inputs, losses)
    monkeypatch.setattr("nextitem.evaluation.scaling_law.HUBER", 100.0)
    plain = fit_law(inputs, losses)
    assert abs(robust.floor - 2) < 0.3 * abs(plain.floor - 2)


def test_more_seeds_narrow_the_interval_and_the_same_seed_gives_the_same() -> None:
    law, inputs = ScalingLaw(2.0, (50.0,), (0.2,)), np.logspace(10, 13, 8)[:, None]
    widths = []
    for num_seeds in (1, 6):
        groups = np.repeat(np.arange(8), num_seeds)
        runs = inputs[groups]
        losses = law(runs) * np.exp(np.random.default_rng(1).normal(0, 0.01, len(runs)))
        fits = [fit_with_intervals(runs, losses, groups.tolist(), replicates=50) for _ in range(2)]
        assert fits[0].intervals() == fits[1].intervals()
        low, high = fits[0].intervals()[2]
        widths.append(high - low)
    assert widths[1] < 0.7 * widths[0]


def test_the_band_contains_the_law_and_a_prediction_is_wider() -> None:
    fit = fit_with_intervals(PARAMETERS, LOSSES, range(7))
    further = np.array([[2e10]])
    (low,), (high,) = fit.band(further)
    predicted, (run_low,), (run_high,) = fit.prediction(further)
    assert run_low <= low < predicted[0] < high <= run_high


def test_impossible_fits_are_refused() -> None:
    with pytest.raises(ValueError, match="3 numbers of the law need as many different inputs; there are 2"):
        fit_law(np.array([[1.0], [2.0], [2.0]]), np.array([3.0, 2.0, 2.0]))
    with pytest.raises(ValueError, match="above 0"):
        fit_law(np.array([[1.0], [2.0], [0.0]]), np.array([3.0, 2.0, 2.0]))
    with pytest.raises(ValueError, match="finite"):
        fit_law(np.array([[1.0], [2.0], [3.0]]), np.array([3.0, 2.0, math.nan]))
