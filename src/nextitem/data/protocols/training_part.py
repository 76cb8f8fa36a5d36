"""The part of a data set that a protocol lets models learn from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nextitem.core.dataset import Dataset


def training_part(dataset: Dataset, rows: NDArray[np.bool_], *, before: int | None = None) -> Dataset:
    """Return the data set with the events in the mask `rows` [T], and the impressions earlier than `before`.

    Args:
        before: milliseconds; None leaves all impressions out.

    """
    shown, earlier = dataset.impressions, None
    if shown is not None and shown.timestamps is not None and before is not None:
        earlier = shown.select(shown.timestamps < before)
    return replace(dataset.with_interactions(dataset.interactions.select(rows)), impressions=earlier)
