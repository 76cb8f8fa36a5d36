"""Cuts in time are between distinct times, as near as possible to the share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.core.errors import UserError
from nextitem.data.protocols.cuts import time_cut

PURCHASES = {"interactions": {"positive_actions": ["purchase"]}}


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=40), st.sampled_from([0.5, 0.8, 0.9]))
def test_time_cut_is_the_nearest_border(values: list[int], share: float) -> None:
    array = np.array(values, dtype=np.int64)
    if len(set(values)) == 1:
        with pytest.raises(UserError, match="one timestamp"):
            time_cut(array, share)
        return
    cut = time_cut(array, share)
    goal = min(max(round(share * len(values)), 1), len(values) - 1)
    distances = {border: abs((array < border).sum() - goal) for border in sorted(set(values))[1:]}
    assert cut in distances
    assert distances[cut] == min(distances.values())
