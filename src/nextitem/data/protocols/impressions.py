"""Protocol `impressions`: train on impressions before a date, and rank the items of impressions after it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset, Split
from nextitem.core.errors import UserError
from nextitem.data.impression_requests import impression_requests
from nextitem.data.protocols.cuts import two_time_cuts


def split_impressions(dataset: Dataset, *, seed: int) -> Split:
    """Cut after 80% and 90% of the requests, each time at the nearest border between distinct times.

    Impressions and events before the first cut are training data. The requests between the cuts are for validation,
    later ones for the test. Evaluation is of the scores of the items shown (`Split.judges_scores`). `seed` is unused.
    """
    impressions = dataset.impressions
    if impressions is None or impressions.timestamps is None:
        raise UserError(f"{dataset.name}: protocol impressions needs a file of dated impressions")
    if not impressions.labels:
        raise UserError(f"{dataset.name}: name the label columns: [impressions] labels = [...] in dataset.toml")
    # Rows shown together stay together: the request has the time of its first row.
    times = np.full(int(impressions.request_ids.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(times, impressions.request_ids, impressions.timestamps)
    first, second = two_time_cuts(times)
    log = dataset.interactions
    notes = []
    if log.timestamps is None and len(log):
        notes.append("interactions are undated, so models do not learn from them")

    def training_data(cut: int) -> Dataset:
        """Return the impressions and the events before a time."""
        events = np.zeros(len(log), np.bool_) if log.timestamps is None else log.timestamps < cut
        earlier = impressions.select((times < cut)[impressions.request_ids])
        return replace(dataset.with_interactions(log.select(events)), impressions=earlier)

    test = impression_requests(dataset, times, times >= second)
    label = impressions.labels[0]
    if not _has_both_values(test, label):
        notes.append(f"test: no user (or request of an unknown user) has both values of {label}: no GAUC")
    return Split(
        "impressions",
        training_data(first),
        impression_requests(dataset, times, (times >= first) & (times < second)),
        test,
        lambda: training_data(second),
        notes=tuple(notes),
    )


def _has_both_values(requests: SequenceBatch, label: str) -> bool:
    """Tell whether any user, or request of an unknown user, has candidates with the label and without it."""
    labels = requests.candidate_labels[label]
    request = labels.row_ids().numpy()
    groups = -1 - request
    if requests.user_ids is not None:
        users = requests.user_ids.numpy()[request]
        groups = np.where(users > 0, users, groups)
    values = labels.values.numpy()  # NaN: not known
    return bool(np.intersect1d(groups[values > 0], groups[values <= 0]).size)
