"""Recent training events as requests: later stages of a cascade learn from them, earlier stages from the past alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.data.last_time import first_time, last_time
from nextitem.data.protocols.cuts import time_cut
from nextitem.data.requests import RequestBuilder, earlier_items, single_targets

LAST_EVENTS = 3  # number of targets of each user that are recent if the log is undated


@dataclass(frozen=True, eq=False)
class RecentEvents:
    """Training data split at a time.

    Attributes:
        past: the data set without the recent events.
        requests: one for each recent event that may be a target, in order of time.

    """

    past: Dataset
    requests: SequenceBatch


def recent_events(
    train: Dataset, *, share: float, max_requests: int, seed: int, num_return_times: int | None = None
) -> RecentEvents:
    """Split the last events off the training data, and return the past and requests for the last events.

    The recent events of a dated log are those from a border between distinct times on. Those of an undated log are the
    last three targets of each user, who keeps at least one earlier target.

    The reason: suppose that a stage is fitted to lists of a first stage that was trained on the targets of these lists.
    It then sees a first stage that is better than it will ever be when it serves. So the first stage retrieves those
    lists after training on the past alone.

    Args:
        train: the training data of a split.
        share: share of the events that are recent, if the log is dated.
        max_requests: maximal number of requests, sampled by `seed`. The history of each contains every earlier event,
            recent ones too.
        seed: seed of the sample.
        num_return_times: for a dated log, request only each user's first target after each of this number of times,
            evenly spaced over the recent ones, as protocol `time` does. Events in the middle of a session or a basket
            are easier to predict. None: request every recent target.

    """
    log = train.interactions
    if log.timestamps is not None:
        is_recent = log.timestamps >= time_cut(log.timestamps, 1 - share)
    else:
        is_recent = _last_targets(train)
    rows = np.flatnonzero(is_recent & log.is_target())
    starts = log.offsets[log.user_ids[rows] - 1]
    rows = rows[earlier_items(log, starts, rows) > 0]
    if num_return_times is not None and log.timestamps is not None and len(rows):
        rows = _first_after(log.timestamps[rows], log.user_ids[rows], rows, num_return_times)
    if len(rows) > max_requests:
        rows = np.sort(np.random.default_rng(seed).choice(rows, max_requests, replace=False))
    if log.timestamps is not None:
        rows = rows[np.argsort(log.timestamps[rows], kind="stable")]
    users = log.user_ids[rows]
    requests = RequestBuilder(train).build(
        log.offsets[users - 1],
        rows,
        targets=single_targets(log, rows),
        times=None if log.timestamps is None else log.timestamps[rows],
        user_ids=None if train.anonymous else users,
        exclude_seen=not train.repeats,
    )
    past = replace(train.with_interactions(log.select(~is_recent)), impressions=None)
    if requests.excluded is not None:
        assert requests.targets is not None
        is_repeat = requests.items.values == requests.targets.values[requests.items.row_ids()]
        is_new = torch.ones(len(rows), dtype=torch.bool)
        is_new[requests.items.row_ids()[is_repeat]] = False  # an excluded target can never be recommended
        requests = requests.select(is_new.nonzero()[:, 0])
    return RecentEvents(past, requests)


def _first_after(times: np.ndarray, users: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Return each user's first row at or after each of `count` evenly spaced times.

    `rows` are in the order of user and time; `times` and `users` are those of the rows.
    """
    # Stray dates are ignored: they would leave no cut among the other dates.
    begin, end = first_time(times), last_time(times)
    parts = []
    for cut in np.linspace(begin, end, count, endpoint=False):
        after = np.flatnonzero(times >= cut)
        parts.append(rows[after[np.unique(users[after], return_index=True)[1]]])
    return np.unique(np.concatenate(parts))


def _last_targets(train: Dataset) -> np.ndarray:
    """Return a mask [T] of the events from each user's third last target on.

    The mask of a user with two or three targets begins with the second one; a user with a single target has none.
    """
    log = train.interactions
    is_target = log.is_target()
    total = np.bincount(log.user_ids[is_target], minlength=log.num_users + 1)
    number = np.cumsum(is_target)  # number of targets up to each event
    before = np.concatenate([[0], number])[log.offsets[log.user_ids - 1]]
    rank = number - before  # 1 for a user's first target, and for the events between it and the next target
    num_past = np.maximum(total[log.user_ids] - LAST_EVENTS, 1)
    is_recent: np.ndarray = (rank > num_past) & (total[log.user_ids] > 1)
    return is_recent
