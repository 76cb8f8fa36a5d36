"""First and last time of a log, computed so that a few wrong dates have no effect."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DAY_MS = 86_400_000
STRAY_SHARE = 0.01  # share of events at each end of the log that may have a wrong date
SLACK_SHARE = 0.1  # share of the log's period by which the last events may be later than 99% of the events


def last_time(timestamps: NDArray[np.int64], *, slack_ms: float | None = None) -> int:
    """Return the latest of `timestamps [T]` (milliseconds, T > 0) that is not a stray date.

    One event that is dated decades ahead would make every other event old. So the result is the latest time that is at
    most `slack_ms` milliseconds after the time that 99% of the events precede. None: a tenth of the period of the
    middle 98% of the events, at least a day; a log that grows evenly then ends with its last event.
    """
    first, end = _quantile(timestamps, STRAY_SHARE), _quantile(timestamps, 1 - STRAY_SHARE)
    slack = max(SLACK_SHARE * (end - first), DAY_MS) if slack_ms is None else slack_ms
    return int(timestamps[timestamps <= end + slack].max())


def first_time(timestamps: NDArray[np.int64]) -> int:
    """Return the earliest of `timestamps [T]` (milliseconds, T > 0) that is not a stray date; mirrors `last_time`."""
    return -last_time(-timestamps)


def half_life_weights(timestamps: NDArray[np.int64], half_life_days: float) -> NDArray[np.float64]:
    """Return the weight of each event, [T]: 0.5 ** (age / half-life), at most 1.

    Ages are measured from `last_time` with a slack of one half-life, and later events have the age 0. So a stray date
    has at most twice the weight of the events that 99% of the log precede.
    """
    if not len(timestamps):
        return np.zeros(0)
    half_life_ms = DAY_MS * half_life_days
    ages = last_time(timestamps, slack_ms=half_life_ms) - timestamps
    weights: NDArray[np.float64] = 0.5 ** (np.maximum(ages, 0) / half_life_ms)
    return weights


def _quantile(timestamps: NDArray[np.int64], share: float) -> int:
    """Return the entry below which `share` of the others lie.

    Of two neighbours it is the lower one if the share is above one half, otherwise the upper one.
    """
    place = int(share * (len(timestamps) - 1)) if share > 0.5 else -int(-share * (len(timestamps) - 1) // 1)
    return int(np.partition(timestamps, place)[place])
