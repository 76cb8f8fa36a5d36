"""Protocol `published`: the owner's column `split` assigns each row to training, validation or test."""

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
    """Train on rows marked train; each positive row marked valid or test that has an earlier item is a target.

    If no row is marked valid, part of the training rows is for validation. Of users it is the last positive event. Of
    anonymous sessions it is the last tenth, by their start; sessions of a dated log that continue past that time are
    training data up to there. The marks are the owner's: nothing checks that test rows are later than training rows.
    `seed` is unused.
    """
    log = dataset.interactions
    if "split" not in log.columns.columns:
        raise UserError(f"{dataset.name}: protocol published needs a column split (train, valid, test)")
    train, valid, test = (enum_codes(log.columns["split"]) == code for code in (1, 2, 3))
    notes: list[str] = []
    if valid.any():
        is_training, validation = train, _marked_requests(dataset, valid)
    elif dataset.anonymous:
        is_training, held_out, notes = _without_last_sessions(dataset, train)
        validation = _marked_requests(dataset, held_out)
    else:
        rows, counts, ends = targets_by_user(log, train)
        users = np.flatnonzero(counts >= 2)
        targets = rows[ends[users] - 1]
        is_training, validation = train & rows_before(log, users, targets), next_event_requests(dataset, targets)
    requests = _marked_requests(dataset, test)
    num_without_history = int((test & log.is_target()).sum()) - requests.num_requests
    return Split(
        "published",
        training_part(dataset, is_training),
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
    """Hold out the last tenth of the anonymous sessions in the mask `train` [T].

    Sessions of a dated log are ordered by their start, others as they appear in the file.

    Returns:
        Masks of the training events and of those held out, [T], and notes. All training events of a dated log are
        earlier than the first session held out.

    """
    log = dataset.interactions
    sessions = np.unique(log.user_ids[train])
    begins = np.arange(len(sessions)) if log.timestamps is None else log.timestamps[log.offsets[sessions - 1]]
    cut = time_cut(begins, 0.9)
    is_last = np.zeros(log.num_users + 1, dtype=np.bool_)
    is_last[sessions[begins >= cut]] = True
    held_out = train & is_last[log.user_ids]
    is_training = train & ~held_out
    if log.timestamps is None:
        return is_training, held_out, []
    late = is_training & (log.timestamps >= cut)
    template = "training: {} sessions that continue past the cut end there"
    return is_training & ~late, held_out, count_note(len(np.unique(log.user_ids[late])), template)
