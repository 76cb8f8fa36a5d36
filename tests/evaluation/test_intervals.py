"""Intervals hold the truth as often as they say, and tell real differences from noise."""

from __future__ import annotations

import pytest
import torch

from nextitem.evaluation.intervals import EXACT_BELOW, interval, paired_difference


def draws(size: int, seed: int, *, chance: float = 0.3) -> torch.Tensor:
    return (torch.rand(size, generator=torch.Generator().manual_seed(seed)) < chance).double()


def test_an_interval_holds_the_true_mean_about_95_times_in_100() -> None:
    bounds = [interval(draws(300, seed), seed=seed) for seed in range(200)]
    held = sum(low <= 0.3 <= high for low, high in bounds)
    assert 180 <= held <= 199


def test_large_samples_take_the_normal_limit_and_join_smoothly() -> None:
    values = draws(EXACT_BELOW, 1)
    exact, limit = interval(values[:-1]), interval(values)
    assert limit == pytest.approx(exact, abs=2e-3)
    mean, error = float(values.mean()), float(values.std() / len(values) ** 0.5)
    assert limit == pytest.approx((mean - 1.96 * error, mean + 1.96 * error))


def test_the_same_values_give_the_same_interval() -> None:
    assert interval(draws(500, 2)) == interval(draws(500, 2))


def test_what_is_not_defined_is_left_out() -> None:
    values = draws(500, 3)
    holes = torch.cat([values, torch.full((100,), torch.nan)])
    assert interval(holes) == interval(values)
    low, high = interval(torch.full((5,), torch.nan))
    assert (low != low, high != high) == (True, True)


def test_a_true_difference_is_found_though_the_single_intervals_overlap() -> None:
    shared = torch.rand(2000, generator=torch.Generator().manual_seed(4))
    worse, better = (shared < 0.30).double(), (shared < 0.32).double()
    assert interval(better)[0] < interval(worse)[1]
    found = paired_difference(better, worse)
    assert not found.is_noise
    assert found.mean == pytest.approx(0.02, abs=0.01)
    assert found.low > 0
    back = paired_difference(worse, better)
    assert (back.mean, back.low, back.high) == pytest.approx((-found.mean, -found.high, -found.low), abs=2e-3)


def test_equal_models_are_noise_95_times_in_100() -> None:
    called = sum(paired_difference(draws(400, seed), draws(400, 1000 + seed)).is_noise for seed in range(100))
    assert called >= 89
    assert paired_difference(draws(400, 1), draws(400, 1)).is_noise


def test_only_requests_that_both_answer_are_compared() -> None:
    a, b = torch.tensor([1.0, torch.nan, 1.0]), torch.tensor([0.0, 0.0, torch.nan])
    assert paired_difference(a, b).mean == 1.0
    assert paired_difference(a[1:2], b[1:2]).is_noise
