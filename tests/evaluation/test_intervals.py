"""Tests of intervals: how often they contain the true value, and whether they separate differences from noise."""

from __future__ import annotations

import pytest
import torch

from nextitem.evaluation.intervals import (
    EXACT_BELOW,
    Difference,
    auc_interval,
    interval,
    paired_auc_difference,
    paired_difference,
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
