"""Protocol `session`: train on events before the latest sessions, and predict each next event within them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset, Split
from nextitem.core.errors import UserError
from nextitem.data.protocols.cuts import time_cut
from nextitem.data.protocols.notes import count_note
from nextitem.data.protocols.training_part import training_part
from nextitem.data.requests import Rows, build_requests, single_targets


def split_by_session(dataset: Dataset, *, seed: int) -> Split:
    """Test on the last tenth of the sessions by their start, and validate on the last tenth of the others.

    Undated sessions are ordered by their first appearance in the file. There is one request for every positive event
    after a session's first item. Its history contains the events of the session alone, and seen items may recur.

    Training data are the sessions that start earlier. If the log is dated, a session that continues past the cut is
    training data only up to the cut. So all training events are earlier than the first request. `seed` is unused.
    """
    sessions = _Sessions.from_dataset(dataset)
    if sessions.count < 3:
        raise UserError(f"{dataset.name}: protocol session needs three sessions or more, there are {sessions.count}")
    begins = sessions.begins
    second = time_cut(begins, 0.9)
    if len(np.unique(begins[begins < second])) < 2:
        raise UserError(f"{dataset.name}: too few sessions start at distinct times; use leave-one-out")
    first = time_cut(begins[begins < second], 0.9)
    validation, num_single_validation = _next_event_requests(sessions, (begins >= first) & (begins < second))
    test, num_single_test = _next_event_requests(sessions, begins >= second)
    return Split(
        "session",
        sessions.training_part(first),
        validation,
        test,
        lambda: sessions.training_part(second),
        notes=(
            *count_note(sessions.num_straddling(first), "training: {} sessions that continue past the cut end there"),
            *count_note(sessions.num_straddling(second), "refit: {} sessions that continue past the cut end there"),
            *count_note(num_single_validation, "validation: left out {} sessions without a next event"),
            *count_note(num_single_test, "test: left out {} sessions without a next event"),
        ),
    )


@dataclass(frozen=True, eq=False)
class _Sessions:
    """The sessions of a log, numbered from 0 in the order of their ids.

    Attributes:
        number: the number of each event's session, [T].
        order: rows of the log, grouped by session, and within a session in the order of the log, [T].

    """

    dataset: Dataset
    number: Rows
    order: Rows

    @classmethod
    def from_dataset(cls, dataset: Dataset) -> _Sessions:
        """Return the sessions of a data set: from the column session_id, or one for each user of an anonymous log."""
        log = dataset.interactions
        if not dataset.anonymous and "session_id" not in log.columns.columns:
            raise UserError(f"{dataset.name}: protocol session needs a column session_id; use time or leave-one-out")
        ids = log.user_ids if dataset.anonymous else log.columns["session_id"].to_numpy()
        number = (np.cumsum(np.bincount(ids) > 0) - 1)[ids]
        order = np.arange(len(log)) if dataset.anonymous else np.argsort(number, kind="stable")
        return cls(dataset, number, order)

    @cached_property
    def starts(self) -> Rows:
        """Return the place in `order` of each session's first event, [S]."""
        return np.flatnonzero(np.diff(self.number[self.order], prepend=-1))

    @property
    def count(self) -> int:
        """Return the number of sessions (S)."""
        return len(self.starts)

    @cached_property
    def begins(self) -> Rows:
        """Return the time of each session's first event in milliseconds, [S]; in an undated log, its number."""
        times = self.dataset.interactions.timestamps
        return np.arange(self.count) if times is None else times[self.order[self.starts]]

    def training_part(self, cut: int) -> Dataset:
        """Return the training data: events before the cut, or, in an undated log, sessions with lower numbers."""
        times = self.dataset.interactions.timestamps
        if times is None:
            return training_part(self.dataset, (self.begins < cut)[self.number])
        return training_part(self.dataset, times < cut, before=cut)

    def num_straddling(self, cut: int) -> int:
        """Return the number of sessions with events before the cut and after it."""
        times = self.dataset.interactions.timestamps
        if times is None:
            return 0
        return len(np.unique(self.number[(self.begins < cut)[self.number] & (times >= cut)]))


def _next_event_requests(sessions: _Sessions, is_included: NDArray[np.bool_]) -> tuple[SequenceBatch, int]:
    """Build one request for each next event of the sessions in a mask [S].

    Returns:
        The requests in the order of the log, and the number of these sessions that have none.

    """
    dataset, order = sessions.dataset, sessions.order
    log, number = dataset.interactions, sessions.number[order]
    places = np.flatnonzero(is_included[number] & log.is_target()[order])
    starts = sessions.starts[number[places]]
    num_items = np.concatenate([[0], np.cumsum(log.item_ids[order] > 0)])
    has_history = num_items[places] > num_items[starts]
    places, starts = places[has_history], starts[has_history]
    in_log_order = np.argsort(order[places])
    places, starts = places[in_log_order], starts[in_log_order]
    rows = order[places]
    requests = build_requests(
        dataset,
        starts,
        places,
        targets=single_targets(log, rows),
        times=None if log.timestamps is None else log.timestamps[rows],
        user_ids=None if dataset.anonymous else log.user_ids[rows],
        order=order,
    )
    return requests, int(is_included.sum()) - len(np.unique(number[places]))
