"""Protocol `user-split`: train on some users, and predict the later events of others from their earlier ones."""

from __future__ import annotations

import numpy as np

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset, Split
from nextitem.data.protocols.notes import count_note, unused_impressions
from nextitem.data.protocols.training_part import training_part
from nextitem.data.requests import Rows, build_requests, target_sets


def split_by_user(dataset: Dataset, *, seed: int) -> Split:
    """Train on 80% of the users, sampled by `seed`; validate on another 10%, and test on the rest.

    For users of validation and test, the first half of their events with an item (rounded down) is the history, and
    the positive items of the second half are the set of targets (Zhu et al., TDM, KDD 2018).
    """
    log = dataset.interactions
    users = np.random.default_rng(seed).permutation(np.flatnonzero(np.diff(log.offsets) > 0))
    num_train, num_refit = round(0.8 * len(users)), round(0.9 * len(users))
    validation, num_short_validation = _half_history_requests(dataset, np.sort(users[num_train:num_refit]))
    test, num_short_test = _half_history_requests(dataset, np.sort(users[num_refit:]))
    return Split(
        "user-split",
        _events_of(dataset, users[:num_train]),
        validation,
        test,
        lambda: _events_of(dataset, users[:num_refit]),
        seed=seed,
        notes=(
            *count_note(num_short_validation, "validation: left out {} users without a history and a target"),
            *count_note(num_short_test, "test: left out {} users without a history and a target"),
            *unused_impressions(dataset),
        ),
    )


def _events_of(dataset: Dataset, users: Rows) -> Dataset:
    """Return the data set with the events of these users, counted from 0."""
    log = dataset.interactions
    is_included = np.zeros(log.num_users, dtype=np.bool_)
    is_included[users] = True
    return training_part(dataset, is_included[log.user_ids - 1])


def _half_history_requests(dataset: Dataset, users: Rows) -> tuple[SequenceBatch, int]:
    """Build one request for each user, whose history is the first half of the user's events with an item.

    `users` count from 0, and are in ascending order.

    Returns:
        The requests, and the number of users without a history or a target.

    """
    log = dataset.interactions
    with_item = np.flatnonzero(log.item_ids > 0)
    counts = np.bincount(log.user_ids[with_item], minlength=log.num_users + 1)[1:]
    begins = np.cumsum(counts) - counts
    long_enough = users[counts[users] >= 2]
    border = log.offsets[1:].copy()
    border[long_enough] = with_item[begins[long_enough] + counts[long_enough] // 2]
    has_request = np.zeros(log.num_users, dtype=np.bool_)
    has_request[long_enough] = True
    owner = log.user_ids - 1
    rows = np.flatnonzero(log.is_target() & has_request[owner] & (np.arange(len(log)) >= border[owner]))
    owners, place = np.unique(owner[rows], return_inverse=True)
    requests = build_requests(
        dataset,
        log.offsets[owners],
        border[owners],
        targets=target_sets(log, rows, place.astype(np.int64), count=len(owners)),
        times=None if log.timestamps is None else log.timestamps[border[owners]],
        user_ids=None if dataset.anonymous else (owners + 1).astype(np.int32),
        exclude_seen=not dataset.repeats,
    )
    return requests, len(users) - len(owners)
