"""Protocol `leave-one-out`: predict the last event of each user from all earlier ones."""

from __future__ import annotations

import numpy as np

from nextitem.core.dataset import Dataset, Split
from nextitem.data.protocols.next_events import next_event_requests, rows_before, targets_by_user
from nextitem.data.protocols.notes import count_note, unreachable_targets, unused_impressions
from nextitem.data.protocols.training_part import training_part


def split_last_events(dataset: Dataset, *, seed: int) -> Split:
    """Test on the last positive event of each user, and validate on the one before it.

    Training data contain a user's events before the validation target, and all events of users with fewer than three
    positive events, for whom there are no requests. `seed` is unused.
    """
    log = dataset.interactions
    rows, counts, ends = targets_by_user(log)
    users = np.flatnonzero(counts >= 3)
    test, validation = rows[ends[users] - 1], rows[ends[users] - 2]
    num_short = int(((counts > 0) & (counts < 3)).sum())
    requests = next_event_requests(dataset, test)
    return Split(
        "leave-one-out",
        training_part(dataset, rows_before(log, users, validation)),
        next_event_requests(dataset, validation),
        requests,
        lambda: training_part(dataset, rows_before(log, users, test)),
        notes=(
            *count_note(num_short, "{} users with fewer than three positive events are in training only"),
            *unreachable_targets(dataset, requests),
            *unused_impressions(dataset),
        ),
    )
