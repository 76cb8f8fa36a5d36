"""Bootstrap intervals: how far a figure, or a difference of two, may be chance (Efron and Tibshirani 1993)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

RESAMPLES = 1000
AUC_RESAMPLES = 300
# Above this many requests the mean is normal to more digits than are shown, and its interval is had at once.
EXACT_BELOW = 5000


@dataclass(frozen=True)
class Difference:
    """Mean of a less mean of b over the requests that both are defined on, with its 95% interval."""

    mean: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """True where the interval holds 0: these requests cannot tell the two apart."""
        return self.low <= 0 <= self.high


def interval(values: Tensor, *, seed: int = 0) -> tuple[float, float]:
    """95% interval of the mean of `values` [B] (NaN: left out); (nan, nan) where there is none.

    Percentile bootstrap over requests; above 5,000 requests its normal limit, mean +- 1.96 standard errors.
    """
    known = values[~values.isnan()].double()
    if not known.numel():
        return float("nan"), float("nan")
    if known.numel() >= EXACT_BELOW:
        mean, error = float(known.mean()), float(known.std() / known.numel() ** 0.5)
        return mean - 1.96 * error, mean + 1.96 * error
    means = _resampled_means(known, seed)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def paired_difference(a: Tensor, b: Tensor, *, seed: int = 0) -> Difference:
    """How much better `a` is than `b`, request by request: the same resamples for both."""
    both = (a - b)[~(a.isnan() | b.isnan())].double()
    if not both.numel():
        return Difference(float("nan"), float("-inf"), float("inf"))
    low, high = interval(both, seed=seed)
    return Difference(float(both.mean()), low, high)


def auc_interval(scores: Tensor, labels: Tensor, groups: Tensor, *, seed: int = 0) -> tuple[float, float]:
    """95% interval of the AUC of `scores` [T] for `labels` [T], by a bootstrap over whole groups (users) [T]."""
    order = scores.argsort()
    ordered = scores[order]
    run = nn.functional.pad((ordered[1:] != ordered[:-1]).long().cumsum(0), (1, 0))  # equal scores share a place
    positive = labels[order].bool()
    distinct, group = torch.unique(groups[order], return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(AUC_RESAMPLES):
        drawn = torch.randint(len(distinct), (len(distinct),), generator=generator)
        weight = torch.bincount(drawn, minlength=len(distinct)).double()[group]
        above = torch.bincount(run, weights=weight * positive)
        below = torch.bincount(run, weights=weight * ~positive)
        pairs = above.sum() * below.sum()
        if pairs > 0:
            values.append((above * (below.cumsum(0) - below / 2)).sum() / pairs)
    if not values:
        return float("nan"), float("nan")
    low, high = torch.stack(values).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _resampled_means(values: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(values.numel(), (RESAMPLES, values.numel()), generator=generator)
    return values[draws].mean(1)
