"""Batches of similar length contain every example once an epoch, can be resumed, and need hardly any padding."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.data.examples.length_pools import POOL_BATCHES, batches_by_length


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=60),
    batch_size=st.integers(1, 8),
    seed=st.integers(0, 100),
    count=st.none() | st.integers(1, 80),
)
def test_an_epoch_contains_each_example_once_and_can_start_at_any_batch(
    lengths: list[int], batch_size: int, seed: int, count: int | None
) -> None:
    array = np.array(lengths)
    batches = [rows.tolist() for rows in batches_by_length(array, batch_size, epoch=1, seed=seed, count=count)]
    examples = [row for rows in batches for row in rows]
    assert len(set(examples)) == len(examples) == min(len(lengths), count or len(lengths))
    for start in range(len(batches) + 1):
        rest = batches_by_length(array, batch_size, epoch=1, seed=seed, start=start, count=count)
        assert [rows.tolist() for rows in rest] == batches[start:]


def test_lengths_within_a_batch_are_similar_and_epochs_differ() -> None:
    lengths = np.random.default_rng(0).integers(1, 1_000, 4_000)
    epochs = [list(batches_by_length(lengths, 10, epoch=epoch, seed=0)) for epoch in (0, 1)]
    spread = np.mean([np.ptp(lengths[rows]) for rows in epochs[0]])
    assert spread < 1_000 * 3 / POOL_BATCHES
    assert sorted(epochs[0][0].tolist()) != sorted(epochs[1][0].tolist())
