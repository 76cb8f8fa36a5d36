"""Times at which protocols cut a log, always between two distinct times."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nextitem.core.errors import UserError


def time_cut(times: NDArray[np.int64], share: float) -> int:
    """Return the time c for which the share of `times` [T] below c is nearest to `share`; both sides have some times.

    Raises:
        UserError: all times are equal.

    """
    goal = min(max(round(share * len(times)), 1), len(times) - 1)
    middle = int(np.partition(times, goal)[goal])
    above = times[times > middle]
    borders = [middle] if int(times.min()) < middle else []
    borders += [int(above.min())] if len(above) else []
    if not borders:
        raise UserError(
            f"{len(times)} events have one timestamp, so there is no border between them to cut at; "
            "choose leave-one-out or user-split"
        )
    return min(borders, key=lambda border: abs(int((times < border).sum()) - goal))


def two_time_cuts(times: NDArray[np.int64]) -> tuple[int, int]:
    """Return the cuts nearest to 80% and 90% of `times`; if equal times make them one, the nearest pair around it."""
    first, second = time_cut(times, 0.8), time_cut(times, 0.9)
    if first < second:
        return first, second
    rest = times[times >= second]
    if int(rest.min()) < int(rest.max()):
        return first, time_cut(rest, 0.5)
    return time_cut(times[times < second], 8 / 9), second
