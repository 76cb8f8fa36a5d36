"""Requests for single events, whose history contains every earlier event of the user."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.core.interactions import Interactions
from nextitem.data.requests import Rows, build_requests, single_targets


def next_event_requests(dataset: Dataset, targets: Rows) -> SequenceBatch:
    """Return one request for each target, given as a row of the log."""
    log = dataset.interactions
    users = log.user_ids[targets]
    return build_requests(
        dataset,
        log.offsets[users - 1],
        targets,
        targets=single_targets(log, targets),
        times=None if log.timestamps is None else log.timestamps[targets],
        user_ids=None if dataset.anonymous else users,
        exclude_seen=not dataset.repeats,
    )


def targets_by_user(log: Interactions, candidates: NDArray[np.bool_] | None = None) -> tuple[Rows, Rows, Rows]:
    """Return the events that may be targets, user by user.

    Args:
        log: the events.
        candidates: mask of events [T] to select from; None: all.

    Returns:
        Rows of the log [n]; the number of them of each user 1..U, [U]; and the end of each user's part of them, [U].

    """
    mask = log.is_target() if candidates is None else log.is_target() & candidates
    rows = np.flatnonzero(mask)
    counts = np.bincount(log.user_ids[rows], minlength=log.num_users + 1)[1:]
    return rows, counts, np.cumsum(counts)


def rows_before(log: Interactions, users: Rows, ends: Rows) -> NDArray[np.bool_]:
    """Return a mask [T] of the events of `users` before the rows `ends`, and of all events of other users.

    `users` [n] count from 0; `ends` [n] are rows of the log.
    """
    border = log.offsets[1:].copy()
    border[users] = ends
    return np.arange(len(log)) < border[log.user_ids - 1]
