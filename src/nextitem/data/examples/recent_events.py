"""Recent events of training as requests: what later stages learn from, while earlier ones know the past alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.data.last_time import first_time, last_time
from nextitem.data.protocols.cuts import time_cut
from nextitem.data.requests import RequestBuilder, earlier_items, single_targets

LAST_EVENTS = 3  # of each user, that are recent where the log is undated


@dataclass(frozen=True, eq=False)
class RecentEvents:
    """`past`: what came before. `requests`: one for each recent event that may be a target, in order of time."""

    past: Dataset
    requests: SequenceBatch


def recent_events(train: Dataset, *, share: float, most: int, seed: int, returns: int | None = None) -> RecentEvents:
    """Cuts the last `share` of training off: events from a border between distinct times on; undated, the last three
    targets of each user, who keeps an earlier one.

    A stage that is fitted to lists of a stage which has learnt the lists' own targets sees a first stage that is better
    than it will ever be; so the first stage makes those lists from the past alone. At most `most` requests are kept,
    drawn by `seed`; the history of each holds every earlier event, recent ones too. `returns`: of a dated log, ask only
    for each user's first target after each of so many times, evenly spread over the recent ones, as protocol `time`
    asks; what comes in the middle of a session or a basket is another, easier question.
    """
    log = train.interactions
    if log.timestamps is not None:
        recent = log.timestamps >= time_cut(log.timestamps, 1 - share)
    else:
        recent = _last_targets(train)
    rows = np.flatnonzero(recent & log.is_target())
    starts = log.offsets[log.user_ids[rows] - 1]
    rows = rows[earlier_items(log, starts, rows) > 0]
    if returns is not None and log.timestamps is not None and len(rows):
        rows = _first_after(log.timestamps[rows], log.user_ids[rows], rows, returns)
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
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
    past = replace(train.with_interactions(log.select(~recent)), impressions=None)
    if requests.excluded is not None:
        assert requests.targets is not None
        again = requests.items.values == requests.targets.values[requests.items.row_ids()]
        fresh = torch.ones(len(rows), dtype=torch.bool)
        fresh[requests.items.row_ids()[again]] = False  # such a target could never be recommended
        requests = requests.select(fresh.nonzero()[:, 0])
    return RecentEvents(past, requests)


def _first_after(times: np.ndarray, users: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Of rows in order of user and time, the first of each user from each of `count` evenly spread times on."""
    begin, end = first_time(times), last_time(times)  # stray dates would leave no cut within the others
    chosen = []
    for cut in np.linspace(begin, end, count, endpoint=False):
        after = np.flatnonzero(times >= cut)
        chosen.append(rows[after[np.unique(users[after], return_index=True)[1]]])
    return np.unique(np.concatenate(chosen))


def _last_targets(train: Dataset) -> np.ndarray:
    """bool [T]: from each user's third last target on (their second where they have three, and so on)."""
    log = train.interactions
    may = log.is_target()
    total = np.bincount(log.user_ids[may], minlength=log.num_users + 1)
    number = np.cumsum(may)  # of targets up to here
    before = np.concatenate([[0], number])[log.offsets[log.user_ids - 1]]
    place = number - before  # 1 for a user's first target, and for what follows it
    kept = np.maximum(total[log.user_ids] - LAST_EVENTS, 1)
    recent: np.ndarray = (place > kept) & (total[log.user_ids] > 1)
    return recent
