"""Tests of intervals: how often they contain the true value, and whether they separate differences from noise."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest

from nextitem.evaluation.intervals import (
    EXACT_BELOW,
    FLIPS_BELOW,
    Difference,
    auc_interval,
    interval,
    paired_auc_difference,
    paired_difference,
    paired_p_value,
)
from nextitem.evaluation.metrics.ranking import auc


def sample_hits(size: int, seed: int, *, chance: float = 0.3) -> torch.Tensor:
    """Return `size` values that are 1 with probability `chance`, else 0."""
    return (torch.rand(size, generator=torch.Generator().manual_seed(seed)) < chance).double()


def test_an_interval_contains_the_true_mean_about_95_times_in_100() -> None:
    bounds = [interval(sample_hits(300, seed), seed=seed) for seed in range(200)]
    num_covering = sum(low <= 0.3 <= high for low, high in bounds)
    assert 180 <= num_covering <= 199


def test_large_samples_use_the_normal_limit_which_is_near_the_bootstrap() -> None:
    values = sample_hits(EXACT_BELOW, 1)
    bootstrap, limit = interval(values[:-1]), interval(values)
    assert limit == pytest.approx(bootstrap, abs=2e-3)
    mean, error = float(values.mean()), float(values.std() / len(values) ** 0.5)
    assert limit == pytest.approx((mean - 1.96 * error, mean + 1.96 * error))


def test_the_same_values_give_the_same_interval() -> None:
    assert interval(sample_hits(500, 2)) == interval(sample_hits(500, 2))


def test_nan_values_are_skipped() -> None:
    values = sample_hits(500, 3)
    with_nan = torch.cat([values, torch.full((100,), torch.nan)])
    assert interval(with_nan) == interval(values)
    low, high = interval(torch.full((5,), torch.nan))
    assert (low != low, high != high) == (True, True)


def test_a_true_difference_is_detected_even_if_the_single_intervals_overlap() -> None:
    shared = torch.rand(2000, generator=torch.Generator().manual_seed(4))
    worse, better = (shared < 0.30).double(), (shared < 0.32).double()
    assert interval(better)[0] < interval(worse)[1]
    difference = paired_difference(better, worse)
    assert not difference.is_noise
    assert difference.mean == pytest.approx(0.02, abs=0.01)
    assert difference.low > 0
    reverse = paired_difference(worse, better)
    assert (reverse.mean, reverse.low, reverse.high) == pytest.approx(
        (-difference.mean, -difference.high, -difference.low), abs=2e-3
    )


def test_equal_models_are_within_noise_about_95_times_in_100() -> None:
    num_noise = sum(
        paired_difference(sample_hits(400, seed), sample_hits(400, 1000 + seed)).is_noise for seed in range(100)
    )
    assert num_noise >= 89
    assert paired_difference(sample_hits(400, 1), sample_hits(400, 1)).is_noise


def test_only_requests_on_which_both_are_defined_are_compared() -> None:
    a, b = torch.tensor([1.0, torch.nan, 1.0]), torch.tensor([0.0, 0.0, torch.nan])
    assert paired_difference(a, b).mean == 1.0
    assert paired_difference(a[1:2], b[1:2]).is_noise


def test_a_paired_difference_of_aucs_is_that_of_the_same_resampled_groups() -> None:
    generator = torch.Generator().manual_seed(5)
    groups = torch.arange(2000) // 5
    labels = torch.rand(2000, generator=generator) < 0.3
    good = labels + torch.randn(2000, generator=generator)
    better = good + 0.3 * labels
    difference = paired_auc_difference(better, good, labels, groups)
    assert difference.mean == pytest.approx(auc(better, labels) - auc(good, labels))
    assert 0 < difference.low < difference.mean < difference.high
    low, high = auc_interval(good, labels, groups)
    assert difference.high - difference.low < (high - low) / 2  # as the scores are nearly the same
    assert paired_auc_difference(good, good, labels, groups) == Difference(0.0, 0.0, 0.0)
    noise = paired_auc_difference(torch.randn(2000, generator=generator), good, labels, groups)
    assert noise.high < 0
    undefined = paired_auc_difference(good, better, torch.ones(2000, dtype=torch.bool), groups)
    assert undefined.mean != undefined.mean
    assert undefined.is_noise


def test_a_p_value_of_hits_is_that_of_the_exact_sign_test() -> None:
    for wins, losses in ((6, 0), (10, 2), (300, 245), (5, 5)):
        a = torch.tensor([1.0] * wins + [0.0] * losses + [1.0] * 40)
        b = torch.tensor([0.0] * wins + [1.0] * losses + [1.0] * 40)
        assert paired_p_value(a, b) == pytest.approx(binomtest(wins, wins + losses).pvalue)
        assert paired_p_value(b, a) == paired_p_value(a, b)


def test_random_flips_are_near_all_flips() -> None:
    differences = torch.tensor([0.9, 0.5, -0.2, 1.0, 0.3, 0.4, -0.1, 0.8, -0.6, 0.7], dtype=torch.float64)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 10)
    exact = float(((signs @ differences).abs() >= differences.sum() - 1e-9).double().mean())
    assert paired_p_value(differences, torch.zeros(10)) == pytest.approx(exact, abs=0.006)


def test_few_requests_are_never_proof() -> None:
    assert paired_p_value(torch.ones(1), torch.zeros(1)) == 1
    assert paired_p_value(torch.ones(5), torch.zeros(5)) == pytest.approx(2 / 32)
    assert paired_p_value(torch.ones(5), torch.ones(5)) == 1
    assert paired_p_value(torch.full((5,), torch.nan), torch.ones(5)) == 1
    assert paired_p_value(torch.zeros(0), torch.zeros(0)) == 1


def test_the_normal_limit_continues_the_flips() -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(FLIPS_BELOW, generator=generator) + 0.12
    zeros = torch.zeros(FLIPS_BELOW)
    assert paired_p_value(values, zeros) == pytest.approx(paired_p_value(values[:-1], zeros[:-1]), abs=0.05)
    assert paired_p_value(values + 1, zeros) < 1e-10


def test_of_two_equally_good_models_5_in_100_differ_by_chance() -> None:
    for size in (60, 2_000):
        p_values = [paired_p_value(sample_hits(size, seed), sample_hits(size, 1_000 + seed)) for seed in range(200)]
        assert 1 <= sum(p_value < 0.05 for p_value in p_values) <= 20
