"""The part of a data set that a protocol allows for training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nextitem.core.dataset import Dataset


def training_part(dataset: Dataset, rows: NDArray[np.bool_], *, before: int | None = None) -> Dataset:
    """Return the data set with the events in the mask `rows` [T], and the impressions earlier than `before`.

    Args:
        dataset: the whole data set.
        rows: mask of events, [T].
        before: end of the impressions (exclusive), in milliseconds; None: leave out all impressions.

    """
    impressions, earlier = dataset.impressions, None
    if impressions is not None and impressions.timestamps is not None and before is not None:
        earlier = impressions.select(impressions.timestamps < before)
    return replace(dataset.with_interactions(dataset.interactions.select(rows)), impressions=earlier)
