"""Next-item sequences: every event is predicted once, from earlier events alone, and epochs are reproducible."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.data.examples.next_item import NextItemBatch, NextItemSequences

LOGS = st.lists(st.lists(st.integers(1, 9), max_size=9), min_size=1, max_size=6)


def log_of(sequences: list[list[int]], positive: list[list[bool]] | None = None) -> Interactions:
    users = [user for user, row in enumerate(sequences, start=1) for _ in row]
    items = [item for row in sequences for item in row]
    positive_flags = None if positive is None else np.array([flag for row in positive for flag in row])
    return Interactions(
        np.array(users, np.int32), np.array(items, np.int32), len(sequences), 9, positive=positive_flags
    )


def pairs(examples: NextItemSequences, batch_size: int = 2, epoch: int = 0) -> list[tuple[list[int], list[int]]]:
    examples_by_batch = []
    for batch in examples.batches(batch_size, epoch=epoch, seed=3):
        examples_by_batch += list(zip(batch.items.to_lists(), batch.targets.to_lists(), strict=True))
    return examples_by_batch


@given(LOGS, st.integers(1, 5))
def test_every_event_but_the_first_is_predicted_once_from_earlier_events(rows: list[list[int]], length: int) -> None:
    examples = NextItemSequences(log_of(rows), max_length=length)
    steps = Counter((row[i], row[i + 1]) for row in rows for i in range(len(row) - 1))
    predicted = Counter((a, b) for inputs, targets in pairs(examples) for a, b in zip(inputs, targets, strict=True))
    assert predicted == steps
    for inputs, targets in pairs(examples):
        assert len(inputs) <= length
        assert inputs[1:] == targets[:-1]


@given(LOGS)
def test_a_user_s_last_window_ends_with_the_last_event_and_is_full(rows: list[list[int]]) -> None:
    whole = sorted(pairs(NextItemSequences(log_of(rows), max_length=3)))
    expected = []
    for row in rows:
        inputs = row[:-1]
        while inputs:
            start = max(0, len(inputs) - 3)
            expected.append((inputs[start:], row[start + 1 : len(inputs) + 1]))
            inputs = inputs[:start]
    assert whole == sorted(expected)


def test_events_that_may_not_be_targets_stay_as_inputs() -> None:
    log = log_of([[1, 2, 3], [4, 5]], [[True, False, True], [True, False]])
    assert pairs(NextItemSequences(log, max_length=5)) == [([1, 2], [0, 3])]


@settings(max_examples=20)
@given(st.integers(0, 4))
def test_batches_are_a_function_of_seed_epoch_and_place(start: int) -> None:
    rows = [[1 + (user + step) % 9 for step in range(2 + user % 5)] for user in range(9)]
    examples = NextItemSequences(log_of(rows), max_length=4)

    def batches_from(epoch: int, begin: int) -> list[tuple[list[list[int]], int]]:
        batches = examples.batches(2, epoch=epoch, seed=3, start=begin)
        return [(batch.items.to_lists(), batch.seed) for batch in batches]

    whole = batches_from(1, 0)
    assert len(whole) == examples.num_batches(2) == 5
    assert batches_from(1, start) == whole[start:]
    assert batches_from(2, 0) != whole
    assert len({seed for _, seed in whole}) == len(whole)


def test_batches_contain_little_padding() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 10, 2 + int(rng.pareto(1.5) * 4)).tolist()[:50] for _ in range(3000)]
    real = padded = 0
    for batch in NextItemSequences(log_of(rows), max_length=50).batches(64, epoch=0, seed=0):
        real += int(batch.items.lengths.sum())
        padded += batch.items.num_rows * int(batch.items.lengths.max())
    assert real / padded > 0.9


def test_batches_have_similar_numbers_of_events() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 10, 2 + int(rng.pareto(1.5) * 4)).tolist()[:50] for _ in range(3000)]
    batches = NextItemSequences(log_of(rows), max_length=50).batches(128, epoch=0, seed=0)
    events = [len(batch.items.values) for batch in batches]
    assert len(events) == 24
    assert max(events) < 1.1 * min(events)


@given(LOGS, st.integers(1, 4))
def test_no_batch_is_empty_for_uneven_lengths(rows: list[list[int]], batch_size: int) -> None:
    examples = NextItemSequences(log_of(rows), max_length=9)
    counts = [batch.items.num_rows for batch in examples.batches(batch_size, epoch=0, seed=0)]
    assert len(counts) == examples.num_batches(batch_size)
    assert all(counts)


def test_a_sequence_contains_its_own_inputs_and_targets_only() -> None:
    batch = NextItemBatch(Jagged.from_rows([[1, 2], [5]]), Jagged.from_rows([[2, 3], [1]]), seed=0)
    assert batch.contains(torch.tensor([[1, 2, 3, 5, 4], [1, 2, 3, 5, 4]])).tolist() == [
        [True, True, True, False, False],
        [True, False, False, True, False],
    ]


def test_targets_by_lag_are_the_events_after_each_input() -> None:
    """An event that may not be a target, and one beyond the sequence, have the weight 0."""
    batch = NextItemBatch(Jagged.from_rows([[1, 2, 3], [9, 4]]), Jagged.from_rows([[2, 0, 7], [4, 5]]), seed=0)
    targets, weights = batch.targets_by_lag((1.0, 0.5, 0.25))
    assert weights.tolist() == [[1.0, 0.0, 0.25], [1.0, 0.0, 0.0], [1.0, 0.5, 0.0], [1.0, 0.0, 0.0]]
    assert (targets * (weights > 0)).tolist() == [[2, 0, 7], [7, 0, 0], [4, 5, 0], [5, 0, 0]]
    assert int(targets.min()) >= 1
