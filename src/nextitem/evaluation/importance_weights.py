"""Importance weights that are cut or shrunk, and the rule that determines how much.

A few large weights can determine an estimate. Each function below changes weights above about `limit` and returns
weights with less variance and some bias. `math.inf` changes nothing.

* `clipped`: min(w, c) (Ionides 2008).
* `switched`: w up to c, 0 above it; a reward model answers for the rest (Wang, Agarwal, Dudik 2017).
* `shrunk`: w c^2 / (w^2 + c^2), the optimistic shrinkage of DRos, whose lambda is c^2 (Su et al. 2020).
* `sub_gaussian`: w / (1 - l + l w) with l = 1 / c (Metelli, Russo, Restelli 2021).

The limit is the one with the least estimated mean squared error (Su et al. 2020, section 5, with the direct estimate of
the bias). The interval of an estimate contains its possible bias, so shrinking lowers errors more than widths.

Shapes: B lists, L limits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from nextitem.evaluation.rates import margin, sums

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Change = Callable[[Floats, float], Floats]  # returns changed weights, from weights and a limit

# Shares of the weights above 1 that are below each limit; the last one lies above all weights.
LIMIT_QUANTILES = (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)


def clipped(weights: Floats, limit: float) -> Floats:
    """Return the weights, at most `limit`."""
    result: Floats = np.minimum(weights, limit)
    return result


def switched(weights: Floats, limit: float) -> Floats:
    """Return the weights up to `limit`, and 0 in place of greater ones."""
    result: Floats = np.where(weights <= limit, weights, 0.0)
    return result


def shrunk(weights: Floats, limit: float) -> Floats:
    """Return w / (1 + (w / limit)^2): half of a weight that equals the limit, and near 0 for much greater ones."""
    result: Floats = weights / (1 + (weights / limit) ** 2)
    return result


def sub_gaussian(weights: Floats, limit: float) -> Floats:
    """Return the weighted harmonic mean of each weight and 1, which is below `limit` (at least 1)."""
    share = 1 / limit
    result: Floats = weights / (1 - share + share * weights)
    return result


def limits_of(weights: Floats) -> list[float]:
    """Return the limits among which a rule selects: quantiles of the weights above 1, and infinity.

    A weight of at most 1 is no reason to change anything, so a policy that is the logging policy has only infinity.
    """
    large = weights[weights > 1]
    if not large.size:
        return [math.inf]
    return [*np.unique(np.quantile(large, LIMIT_QUANTILES)).tolist(), math.inf]


def least_error(values: Sequence[Floats], users: Ints) -> int:
    """Return which of several estimates has the least estimated mean squared error.

    That is its variance plus its squared bias, which is estimated by the difference to the last, unbiased one. The
    noise of that difference makes the rule cautious: its square is on average too large.

    Args:
        values: values of the lists, whose mean is the estimate, of each limit; the last one unchanged; L arrays [B].
        users: numbers of the users from 0, [B]; variances count users.

    """
    _, numbers = np.unique(users, return_inverse=True)
    means = np.array([each.mean() for each in values])
    variances = [float(((sums(each - each.mean(), numbers) / len(each)) ** 2).sum()) for each in values]
    return int(((means - means[-1]) ** 2 + variances).argmin())


def bias_bound(changed: Floats, unbiased: Floats, users: Ints) -> float:
    """Return how large the bias of an estimate can be, at a level of 95%.

    Args:
        changed: values of the lists, whose mean is the estimate, [B].
        unbiased: values of the estimate without changed weights, [B].
        users: numbers of the users from 0, [B].

    """
    _, numbers = np.unique(users, return_inverse=True)
    differences = changed - unbiased
    if not differences.any():
        return 0.0
    mean = float(differences.mean())
    return abs(mean) + margin(sums(differences - mean, numbers) / len(differences))
