"""Next targets: every target once, with exactly the events before it; resumable, random by (seed, epoch)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.core.interactions import Interactions
from nextitem.data.examples.next_target import NextTargets
from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset

Example = tuple[int, tuple[int, ...], int]


def log_of(sequences: list[list[int]], positive: list[list[bool]] | None = None) -> Interactions:
    items = np.array([item for row in sequences for item in row], np.int32)
    users = np.repeat(np.arange(1, len(sequences) + 1), [len(row) for row in sequences]).astype(np.int32)
    positive_flags = None if positive is None else np.array([value for row in positive for value in row], bool)
    return Interactions(users, items, len(sequences), 9, positive=positive_flags)


def next_targets(log: Interactions, **settings: Any) -> NextTargets:
    """Return examples whose user keys are the users' numbers."""
    return NextTargets(log, user_keys=np.arange(log.num_users + 1), **settings)


def examples_of(source: NextTargets, size: int, *, epoch: int = 0, seed: int = 0, start: int = 0) -> list[Example]:
    examples: list[Example] = []
    for batch in source.batches(size, epoch=epoch, seed=seed, start=start):
        assert batch.user_ids is not None
        assert batch.targets is not None
        histories = [tuple(row) for row in batch.items.to_lists()]
        targets = [row[0] for row in batch.targets.to_lists()]
        examples += list(zip(batch.user_ids.tolist(), histories, targets, strict=True))
    return examples


def expected(sequences: list[list[int]], positive: list[list[bool]], length: int) -> list[Example]:
    examples = []
    for user, (row, flags) in enumerate(zip(sequences, positive, strict=True), start=1):
        events = [(item, is_positive) for item, is_positive in zip(row, flags, strict=True) if item > 0]
        for place in range(1, len(events)):
            if events[place][1]:
                history = tuple(item for item, _ in events[max(0, place - length) : place])
                examples.append((user, history, events[place][0]))
    return sorted(examples)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=12), min_size=1, max_size=6),
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_an_epoch_contains_every_target_once_with_its_history(
    rows: list[list[tuple[int, bool]]], length: int, size: int
) -> None:
    sequences, positive = [[i for i, _ in row] for row in rows], [[p for _, p in row] for row in rows]
    source = next_targets(log_of(sequences, positive), max_length=length)
    examples = examples_of(source, size)
    assert sorted(examples) == expected(sequences, positive, length)
    assert source.num_batches(size) == -(-len(examples) // size)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=12), min_size=1, max_size=6),
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_later_events_of_the_user_follow_the_target(
    rows: list[list[tuple[int, bool]]], num_targets: int, size: int
) -> None:
    sequences, positive = [[i for i, _ in row] for row in rows], [[p for _, p in row] for row in rows]
    source = next_targets(log_of(sequences, positive), max_length=3, num_targets=num_targets)
    actual = []
    for batch in source.batches(size, epoch=0, seed=0):
        assert batch.user_ids is not None
        assert batch.targets is not None
        histories, targets = batch.items.to_lists(), batch.targets.to_lists()
        actual += list(zip(batch.user_ids.tolist(), histories, targets, strict=True))
    expected_rows = []
    for user, row in enumerate(rows, start=1):
        events = [(item, is_positive) for item, is_positive in row if item > 0]
        for place in range(1, len(events)):
            if events[place][1]:
                later = [item * is_positive for item, is_positive in events[place : place + num_targets]]
                expected_rows.append((user, [item for item, _ in events[max(0, place - 3) : place]], later))
    assert sorted(actual) == sorted(expected_rows)


def test_batches_contain_similar_numbers_of_targets() -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, 10, rng.geometric(0.15) + 1).tolist() for _ in range(3000)]
    real = padded = 0
    for batch in next_targets(log_of(sequences), max_length=20, num_targets=5).batches(64, epoch=0, seed=0):
        assert batch.targets is not None
        real += len(batch.targets.values)
        padded += batch.num_requests * int(batch.targets.lengths.max())
    assert padded < 1.25 * real


SEQUENCES = [[1 + (user * 7 + step) % 9 for step in range(2 + user % 9)] for user in range(60)]


def test_batches_are_a_function_of_seed_and_epoch_and_resume_anywhere() -> None:
    source = next_targets(log_of(SEQUENCES), max_length=5)
    whole = examples_of(source, 8, epoch=3, seed=1)
    assert examples_of(source, 8, epoch=3, seed=1) == whole
    four = [batch.num_requests for batch in source.batches(8, epoch=3, seed=1)][:4]
    assert examples_of(source, 8, epoch=3, seed=1, start=4) == whole[sum(four) :]
    assert examples_of(source, 8, epoch=4, seed=1) != whole
    assert examples_of(source, 8, epoch=3, seed=2) != whole


def test_a_sampled_epoch_repeats_no_target_and_all_occur_equally_often() -> None:
    source = next_targets(log_of(SEQUENCES), max_length=20, per_epoch=40)
    all_examples = set(examples_of(next_targets(log_of(SEQUENCES), max_length=20), 8))
    counts: dict[Example, int] = dict.fromkeys(all_examples, 0)
    for epoch in range(300):
        epoch_examples = examples_of(source, 8, epoch=epoch)
        assert len(epoch_examples) == len(set(epoch_examples)) == 40
        for example in epoch_examples:
            counts[example] += 1
    # Each is sampled 300 * 40 / n times on average; 6 standard deviations are far below half of that.
    mean = 300 * 40 / len(all_examples)
    assert min(counts.values()) > mean / 2
    assert max(counts.values()) < mean * 1.5


def test_batches_contain_little_padding() -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, 10, rng.geometric(0.15) + 1).tolist() for _ in range(3000)]
    real = padded = 0
    for batch in next_targets(log_of(sequences), max_length=20).batches(64, epoch=0, seed=0):
        real += int(batch.items.lengths.sum())
        padded += batch.num_requests * int(batch.items.lengths.max())
    assert padded < 1.05 * real


def test_validation_and_test_items_are_never_targets(real_data: Path) -> None:
    split = make_split(load_dataset(real_data / "amazon14-beauty"), "leave-one-out")
    source = next_targets(split.train.interactions, max_length=20)
    assert len(source.places) == 131_413
    last = np.full(split.train.interactions.num_users + 1, -1)
    last[source.users] = source.items.numpy()[source.places]  # later targets of a user overwrite earlier ones
    assert split.validation.user_ids is not None
    assert split.validation.targets is not None
    histories = split.validation.items
    final = histories.values[histories.offsets[1:] - 1].numpy()
    users = split.train.users.numbers_of(split.validation.user_ids.numpy())
    has_target = last[users] > 0
    assert bool((last[users][has_target] == final[has_target]).all())


@pytest.mark.parametrize("sequences", [[[]], [[4]], [[1], [2]]])
def test_logs_without_targets_have_no_batches(sequences: list[list[int]]) -> None:
    source = next_targets(log_of(sequences), max_length=3)
    assert source.num_batches(4) == 0
    assert examples_of(source, 4) == []
