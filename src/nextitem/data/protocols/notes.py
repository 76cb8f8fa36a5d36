"""Notes: what a split leaves out, in words that are printed."""

from __future__ import annotations

import numpy as np

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset


def count_note(count: int, words: str) -> list[str]:
    """Return `words` with the count in place of {}, or nothing if the count is 0."""
    return [words.format(count)] if count else []


def unreachable_targets(dataset: Dataset, requests: SequenceBatch) -> list[str]:
    """Return a note of the test targets that were seen before, if seen items may not be recommended."""
    if dataset.repeats or requests.targets is None or not requests.num_requests:
        return []
    is_seen = requests.items.values == requests.targets.values[requests.items.row_ids()]
    count = len(np.unique(requests.items.row_ids()[is_seen].numpy()))
    return count_note(count, "test: {} targets were seen before, and repeats = false forbids them")


def unused_impressions(dataset: Dataset) -> list[str]:
    """Return a note that impressions are left out, if there are some."""
    return [] if dataset.impressions is None else ["impressions are not learnt from: they may show targets"]
