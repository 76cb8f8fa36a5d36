"""Protocol `time`: train on events before a date, and predict users' events after it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset, Split
from nextitem.core.errors import UserError
from nextitem.core.interactions import Interactions
from nextitem.data.protocols.cuts import two_time_cuts
from nextitem.data.protocols.notes import count_note, unreachable_targets
from nextitem.data.protocols.training_part import training_part
from nextitem.data.requests import Rows, build_requests, earlier_items, single_targets, target_sets


def split_by_time(dataset: Dataset, *, seed: int) -> Split:
    """Cut the log after 80% and 90% of its events, each time at the nearest border between distinct times.

    Events before the first cut are training data, those between the cuts are for validation, later ones for the test.
    There is one request for each user with an earlier item. Its target is the user's first positive event after the
    cut. The targets in `test_later` are all positive items of the user after the cut, as a set. `seed` is unused.
    """
    times = dataset.interactions.timestamps
    if times is None:
        raise UserError(f"{dataset.name}: protocol time needs a timestamp for every event; use leave-one-out")
    first, second = two_time_cuts(times)
    validation, num_new_validation, _ = _requests_after(dataset, first, second)
    test, num_new_test, test_later = _requests_after(dataset, second, None)
    return Split(
        "time",
        training_part(dataset, times < first, before=first),
        validation,
        test,
        lambda: training_part(dataset, times < second, before=second),
        test_later=test_later,
        notes=(
            *count_note(num_new_validation, "validation: left out {} users without events before the cut"),
            *count_note(num_new_test, "test: left out {} users without events before the cut"),
            *unreachable_targets(dataset, test),
        ),
    )


def _requests_after(dataset: Dataset, cut: int, end: int | None) -> tuple[SequenceBatch, int, SequenceBatch]:
    """Build the requests of a period.

    Args:
        dataset: a dated log.
        cut: begin of the period, in milliseconds.
        end: end of the period (exclusive), in milliseconds; None: the end of the log.

    Returns:
        Requests for each user's first target; the number of users left out, who have no earlier item; and the same
        requests with all targets of the period.

    """
    log = dataset.interactions
    assert log.timestamps is not None
    in_period = log.is_target() & (log.timestamps >= cut)
    if end is not None:
        in_period &= log.timestamps < end
    rows = np.flatnonzero(in_period)
    users, first = np.unique(log.user_ids[rows], return_index=True)
    starts = log.offsets[users - 1]
    cuts = starts + _events_before(log, cut)[users]
    has_history = earlier_items(log, starts, cuts) > 0
    users, starts, targets = users[has_history], starts[has_history], rows[first[has_history]]
    requests = build_requests(
        dataset,
        starts,
        targets,
        targets=single_targets(log, targets),
        times=log.timestamps[targets],
        user_ids=None if dataset.anonymous else users,
        exclude_seen=not dataset.repeats,
    )
    has_request = np.zeros(log.num_users + 1, dtype=np.bool_)
    has_request[users] = True
    later = rows[has_request[log.user_ids[rows]]]
    owners = np.searchsorted(users, log.user_ids[later])
    sets = target_sets(log, later, owners, count=len(users))
    return requests, int((~has_history).sum()), replace(requests, targets=sets)


def _events_before(log: Interactions, cut: int) -> Rows:
    """Return the number of events of each user before a time, [U + 1]."""
    assert log.timestamps is not None
    return np.bincount(log.user_ids[log.timestamps < cut], minlength=log.num_users + 1)
