"""Bootstrap intervals of a figure or of the difference of two (Efron and Tibshirani 1993), and a paired test."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.special import bdtr
from torch import Tensor, nn

from nextitem.evaluation.metrics.ranking import auc

RESAMPLES = 1000
AUC_RESAMPLES = 300
# From this number of requests on, the mean is normal to more digits than are printed: no resampling is needed.
EXACT_BELOW = 5000
SIGN_FLIPS = 20_000
# From this number of differing requests on, the normal limit of the sign-flip test needs no flips.
FLIPS_BELOW = 200


@dataclass(frozen=True)
class Difference:
    """Mean of a minus mean of b, over the requests on which both are defined, with its 95% interval."""

    mean: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """Whether the interval contains 0: these requests do not show which of the two is better."""
        return self.low <= 0 <= self.high


def interval(values: Tensor, *, seed: int = 0) -> tuple[float, float]:
    """Return the 95% interval (low, high) of the mean of `values` [B].

    NaN values are skipped; the interval is (nan, nan) if no other value remains. Percentile bootstrap over requests.
    From 5,000 requests on it is the normal limit of that: mean +- 1.96 standard errors.
    """
    defined = values[~values.isnan()].double()
    if not defined.numel():
        return float("nan"), float("nan")
    if defined.numel() >= EXACT_BELOW:
        mean, error = float(defined.mean()), float(defined.std() / defined.numel() ** 0.5)
        return mean - 1.96 * error, mean + 1.96 * error
    means = _resampled_means(defined, seed)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def paired_difference(a: Tensor, b: Tensor, *, seed: int = 0) -> Difference:
    """Return how much greater `a` [B] is than `b` [B], request by request, with its 95% interval.

    Both are resampled together. Requests on which either is NaN are skipped. If no request remains, the mean is NaN and
    the interval unbounded.
    """
    differences = (a - b)[~(a.isnan() | b.isnan())].double()
    if not differences.numel():
        return Difference(float("nan"), float("-inf"), float("inf"))
    low, high = interval(differences, seed=seed)
    return Difference(float(differences.mean()), low, high)


def paired_p_value(a: Tensor, b: Tensor, *, seed: int = 0) -> float:
    """Return how probable a mean difference as large as that of `a` [B] and `b` [B] is if neither is better.

    Two-sided sign-flip test (Fisher 1935): if neither is better, each request's difference could as well have the other
    sign. Exact if all differences have the same size, as those of hits have (McNemar 1947). Otherwise 20,000 random
    flips below 200 requests that differ, from there on the normal limit. Requests on which either is NaN are skipped.
    The value is 1 if no request differs.
    """
    differences = (a - b)[~(a.isnan() | b.isnan())].double()
    differences = differences[differences != 0]
    total = float(differences.sum().abs())
    if not differences.numel():
        return 1.0
    if bool((differences.abs() == differences[0].abs()).all()):
        num_wins = int((differences > 0).sum())
        rarer = min(num_wins, differences.numel() - num_wins)
        return min(1.0, 2 * float(bdtr(rarer, differences.numel(), 0.5)))
    if differences.numel() >= FLIPS_BELOW:
        return math.erfc(total / float(differences.square().sum().sqrt()) / math.sqrt(2))
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (SIGN_FLIPS, differences.numel()), generator=generator, dtype=torch.int8).double() * 2 - 1
    num_as_large = int(((signs @ differences).abs() >= total * (1 - 1e-9)).sum())
    return (1 + num_as_large) / (1 + SIGN_FLIPS)


def auc_interval(scores: Tensor, labels: Tensor, groups: Tensor, *, seed: int = 0) -> tuple[float, float]:
    """Return the 95% interval (low, high) of an AUC, by a bootstrap over groups.

    Args:
        scores: scores of the candidates, [T].
        labels: labels of the candidates, 0 or 1, [T].
        groups: group of each candidate, such as its user, [T]. A group is resampled as a whole.
        seed: seed of the bootstrap.

    Returns:
        The interval; (nan, nan) if one of the two labels does not occur.

    """
    values = _resampled_aucs(scores, labels, groups, seed)
    values = values[~values.isnan()]
    if not values.numel():
        return float("nan"), float("nan")
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def paired_auc_difference(a: Tensor, b: Tensor, labels: Tensor, groups: Tensor, *, seed: int = 0) -> Difference:
    """Return how much greater the AUC of scores `a` is than that of scores `b`, with its 95% interval.

    Both are resampled together, by a bootstrap over groups. The mean is NaN, and the interval unbounded, if one of the
    two labels does not occur.

    Args:
        a: scores of the candidates by one model, [T].
        b: scores of the same candidates by the other model, [T].
        labels: labels of the candidates, 0 or 1, [T].
        groups: group of each candidate, such as its user, [T]. A group is resampled as a whole.
        seed: seed of the bootstrap.

    """
    samples = _resampled_aucs(a, labels, groups, seed) - _resampled_aucs(b, labels, groups, seed)
    samples = samples[~samples.isnan()]
    if not samples.numel():
        return Difference(float("nan"), float("-inf"), float("inf"))
    low, high = samples.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Difference(auc(a, labels) - auc(b, labels), low, high)


def _resampled_aucs(scores: Tensor, labels: Tensor, groups: Tensor, seed: int) -> Tensor:
    """Return the AUC of AUC_RESAMPLES bootstrap samples of the groups; NaN for a sample with labels of one kind.

    The samples are a function of groups and seed alone, so those of two models are pairs.
    """
    order = scores.argsort()
    ordered = scores[order]
    run = nn.functional.pad((ordered[1:] != ordered[:-1]).long().cumsum(0), (1, 0))  # equal scores share a rank
    positive = labels[order].bool()
    distinct, group = torch.unique(groups[order], return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(AUC_RESAMPLES):
        sampled_groups = torch.randint(len(distinct), (len(distinct),), generator=generator)
        weight = torch.bincount(sampled_groups, minlength=len(distinct)).double()[group]
        above = torch.bincount(run, weights=weight * positive)
        below = torch.bincount(run, weights=weight * ~positive)
        num_pairs = above.sum() * below.sum()  # of 0 pairs, the quotient is NaN
        values.append((above * (below.cumsum(0) - below / 2)).sum() / num_pairs)
    return torch.stack(values)


def _resampled_means(values: Tensor, seed: int) -> Tensor:
    """Return the means of RESAMPLES bootstrap samples of `values`, [RESAMPLES]."""
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randint(values.numel(), (RESAMPLES, values.numel()), generator=generator)
    return values[samples].mean(1)
