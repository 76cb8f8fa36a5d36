"""The time at which a log ends, whatever dates a few of its events carry."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DAY_MS = 86_400_000
STRAY_SHARE = 0.01  # of events, at each end of the log, that may be dated wrongly
SLACK_SHARE = 0.1  # of the time between both ends: how far the last events may stand beyond the bulk


def last_time(timestamps: NDArray[np.int64], *, slack_ms: float | None = None) -> int:
    """Return the latest of `timestamps [T]` (milliseconds, T > 0) that belongs to the log.

    One event that is dated decades ahead would make every other event old. So the time is the latest one that stands
    at most `slack_ms` after the time that 99% of the events precede. None: a tenth of the time that the middle 98%
    span, at least a day; a log that grows evenly then ends with its last event.
    """
    first, end = _quantile(timestamps, STRAY_SHARE), _quantile(timestamps, 1 - STRAY_SHARE)
    slack = max(SLACK_SHARE * (end - first), DAY_MS) if slack_ms is None else slack_ms
    return int(timestamps[timestamps <= end + slack].max())


def first_time(timestamps: NDArray[np.int64]) -> int:
    """Return the earliest of `timestamps [T]` (T > 0) that belongs to the log: `last_time`, counted backwards."""
    return -last_time(-timestamps)


def half_life_weights(timestamps: NDArray[np.int64], half_life_days: float) -> NDArray[np.float64]:
    """Return what each event [T] counts: 0.5 ** (age / half-life), at most 1.

    Ages are measured from `last_time` with a slack of one half-life, and later events have the age 0: so a stray date
    counts at most twice as much as the events that 99% of the log precede.
    """
    if not len(timestamps):
        return np.zeros(0)
    half_life_ms = DAY_MS * half_life_days
    ages = last_time(timestamps, slack_ms=half_life_ms) - timestamps
    weights: NDArray[np.float64] = 0.5 ** (np.maximum(ages, 0) / half_life_ms)
    return weights


def _quantile(timestamps: NDArray[np.int64], share: float) -> int:
    """The entry below which `share` of the others lie; the lower one of two, above one half."""
    place = int(share * (len(timestamps) - 1)) if share > 0.5 else -int(-share * (len(timestamps) - 1) // 1)
    return int(np.partition(timestamps, place)[place])
