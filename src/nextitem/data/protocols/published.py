"""Protocol `published`: the owner's column `split` marks what is learned from, what validates and what tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset, Split
from nextitem.core.errors import UserError
from nextitem.data.protocols.cuts import time_cut
from nextitem.data.protocols.next_events import next_event_requests, rows_before, targets_by_user
from nextitem.data.protocols.notes import count_note, unreachable_targets, unused_impressions
from nextitem.data.protocols.training_part import training_part
from nextitem.data.requests import earlier_items, enum_codes

Mask = NDArray[np.bool_]


def split_by_marks(dataset: Dataset, *, seed: int) -> Split:
    """Learn from the rows marked train; every positive row marked valid or test that has an earlier item is a target.

    Without rows marked valid, part of the training rows validates: the last tenth of anonymous sessions, by their
    start (sessions of a dated log that continue past it are learned from up to there), or each user's last positive
    event. The marks are the owner's: nothing checks that test rows are later than training rows. `seed` is unused.
    """
    log = dataset.interactions
    if "split" not in log.columns.columns:
        raise UserError(f"{dataset.name}: protocol published needs a column split (train, valid, test)")
    train, valid, test = (enum_codes(log.columns["split"]) == code for code in (1, 2, 3))
    notes: list[str] = []
    if valid.any():
        learned, validation = train, _marked_requests(dataset, valid)
    elif dataset.anonymous:
        learned, held_out, notes = _without_last_sessions(dataset, train)
        validation = _marked_requests(dataset, held_out)
    else:
        rows, counts, ends = targets_by_user(log, train)
        users = np.flatnonzero(counts >= 2)
        targets = rows[ends[users] - 1]
        learned, validation = train & rows_before(log, users, targets), next_event_requests(dataset, targets)
    requests = _marked_requests(dataset, test)
    num_without_history = int((test & log.is_target()).sum()) - requests.num_requests
    return Split(
        "published",
        training_part(dataset, learned),
        validation,
        requests,
        lambda: training_part(dataset, train | valid),
        notes=(
            *notes,
            *count_note(num_without_history, "test: {} marked events without an earlier item are history only"),
            *unreachable_targets(dataset, requests),
            *unused_impressions(dataset),
        ),
    )


def _marked_requests(dataset: Dataset, rows: Mask) -> SequenceBatch:
    """Return one request for each event of the mask [T] that may be a target and has an earlier item."""
    log = dataset.interactions
    targets = np.flatnonzero(rows & log.is_target())
    has_history = earlier_items(log, log.offsets[log.user_ids[targets] - 1], targets) > 0
    return next_event_requests(dataset, targets[has_history])


def _without_last_sessions(dataset: Dataset, train: Mask) -> tuple[Mask, Mask, list[str]]:
    """Hold out the last tenth of the anonymous sessions in `train` [T], by start, else as they appear in the file.

    Returns:
        Masks of the events to learn from and of those held out, [T], and notes. No event of a dated log that is
        learned from is as late as the first session held out.

    """
    log = dataset.interactions
    sessions = np.unique(log.user_ids[train])
    begins = np.arange(len(sessions)) if log.timestamps is None else log.timestamps[log.offsets[sessions - 1]]
    cut = time_cut(begins, 0.9)
    is_last = np.zeros(log.num_users + 1, dtype=np.bool_)
    is_last[sessions[begins >= cut]] = True
    held_out = train & is_last[log.user_ids]
    learned = train & ~held_out
    if log.timestamps is None:
        return learned, held_out, []
    late = learned & (log.timestamps >= cut)
    words = "training: {} sessions that continue past the cut end there"
    return learned & ~late, held_out, count_note(len(np.unique(log.user_ids[late])), words)
