"""The end of a log, and the weights of its events, with and without dates that are wrong by centuries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.data.last_time import DAY_MS, first_time, half_life_weights, last_time

YEAR_MS = 365 * DAY_MS
NOW = 1_600_000_000_000


def even_log(count: int, days: float) -> np.ndarray:
    return (NOW + np.linspace(0, days * DAY_MS, count)).astype(np.int64)


@pytest.mark.parametrize("days", [0.01, 30.0, 4000.0])
@pytest.mark.parametrize("count", [1, 2, 30, 241, 5000])
def test_an_even_log_ends_with_its_last_event(count: int, days: float) -> None:
    if count == 2 and days > 1:
        pytest.skip("of two events either may be the stray one")
    times = even_log(count, days)
    assert last_time(times) == times.max()
    assert first_time(times) == times.min()


@pytest.mark.parametrize("years", [-900, -50, 76, 8000])
def test_one_percent_of_stray_dates_has_no_effect(years: int) -> None:
    times = even_log(1000, 400)
    strays = times[:9] + years * YEAR_MS
    both = np.random.default_rng(0).permutation(np.concatenate([times, strays]))
    assert last_time(both) == times.max()
    assert first_time(both) == times.min()


def test_a_weight_is_halved_after_a_half_life() -> None:
    times = NOW + np.array([0, 10, 20, 20]) * DAY_MS
    assert half_life_weights(times, 10).tolist() == [0.25, 0.5, 1, 1]
    assert half_life_weights(times[:0], 10).tolist() == []


@settings(max_examples=50, deadline=None)
@given(st.integers(101, 600), st.floats(0.1, 2000), st.sampled_from([1.0, 40.0, 800.0]), st.integers(0, 2**31))
def test_a_stray_date_has_at_most_twice_the_weight_of_the_latest_events(
    count: int, half_life: float, days: float, seed: int
) -> None:
    times = even_log(count, days)
    stray = NOW + int(np.random.default_rng(seed).integers(0, 8000 * YEAR_MS))
    plain, weights = half_life_weights(times, half_life), half_life_weights(np.append(times, stray), half_life)
    assert weights.max() == 1
    assert np.sort(weights[:-1])[int(0.99 * count)] >= 0.5
    # The ratios of the other weights do not change, except for weights that are capped at 1.
    below = (plain < 0.5) & (plain > 1e-200)
    if below.any():
        ratios = weights[:-1][below] / plain[below]
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-6)
