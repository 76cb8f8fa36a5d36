"""Printed notes on what a split leaves out."""

from __future__ import annotations

import numpy as np

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset


def count_note(count: int, template: str) -> list[str]:
    """Return the note `template` with the count in place of {}, or no note if the count is 0."""
    return [template.format(count)] if count else []


def unreachable_targets(dataset: Dataset, requests: SequenceBatch) -> list[str]:
    """Return a note with the number of test targets that are in the history, if seen items may not be recommended."""
    if dataset.repeats or requests.targets is None or not requests.num_requests:
        return []
    is_seen = requests.items.values == requests.targets.values[requests.items.row_ids()]
    count = len(np.unique(requests.items.row_ids()[is_seen].numpy()))
    return count_note(count, "test: {} targets were seen before, and repeats = false forbids them")


def unused_impressions(dataset: Dataset) -> list[str]:
    """Return a note that training ignores impressions, if there are some."""
    return [] if dataset.impressions is None else ["training ignores impressions: they may contain targets"]
