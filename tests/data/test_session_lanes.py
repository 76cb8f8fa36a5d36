"""Session lanes: every event once, in order, one lane for each session, and a new state for each session."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.core.interactions import Interactions
from nextitem.data.examples.session_lanes import LaneBatch, SessionLanes

LENGTHS = st.lists(st.integers(0, 7), min_size=1, max_size=25)


def log(lengths: list[int], **fields: object) -> Interactions:
    """Return a log of sessions with these lengths, in which every event has a different item."""
    users = np.repeat(np.arange(1, len(lengths) + 1), lengths).astype(np.int32)
    items = np.arange(1, len(users) + 1, dtype=np.int32)
    return Interactions(users, items, len(lengths), max(1, len(users)), **fields)  # type: ignore[arg-type]


def steps(examples: SessionLanes, lanes: int, *, epoch: int = 0, start: int = 0) -> list[LaneBatch]:
    return list(examples.batches(lanes, epoch=epoch, seed=5, start=start))


def test_lanes_agree_with_a_schedule_written_by_hand() -> None:
    """Check sessions 1-2-3, 4-5, 6-7-8-9, 10-11 in two lanes: the lane of 4-5 starts the next while the other reads."""
    batches = steps(SessionLanes(log([3, 2, 4, 2])), 2)
    assert [batch.items.tolist() for batch in batches] == [[1, 4], [2, 6], [10, 7], [8]]
    assert [batch.targets.tolist() for batch in batches] == [[2, 5], [3, 7], [11, 8], [9]]
    assert [batch.lanes.tolist() for batch in batches] == [[0, 1], [0, 1], [0, 1], [1]]
    assert [batch.begins.tolist() for batch in batches] == [[True, True], [False, True], [True, False], [False]]
    assert all(batch.num_lanes == 2 for batch in batches)


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, lanes=st.integers(1, 6))
def test_an_epoch_contains_every_pair_once_and_lanes_never_mix_sessions(lengths: list[int], lanes: int) -> None:
    examples = SessionLanes(log(lengths))
    batches = steps(examples, lanes)
    assert len(batches) == examples.num_batches(lanes)
    pairs = [pair for batch in batches for pair in zip(batch.items.tolist(), batch.targets.tolist(), strict=True)]
    ends = np.cumsum(lengths).tolist()
    expected = [(item, item + 1) for end, n in zip(ends, lengths, strict=True) for item in range(end - n + 1, end)]
    assert sorted(pairs) == expected  # no pair is lost at the end, when batches are not full
    last: dict[int, int] = {}  # last item of each lane
    firsts = {end - n + 1 for end, n in zip(ends, lengths, strict=True) if n >= 2}
    sizes = [len(batch.items) for batch in batches]
    assert sizes == sorted(sizes, reverse=True)
    for batch in batches:
        rows = zip(batch.items.tolist(), batch.lanes.tolist(), batch.begins.tolist(), strict=True)
        for item, lane, begins in rows:
            assert begins == (item in firsts)
            assert begins or item == last[lane] + 1
            last[lane] = item


def test_batches_do_not_depend_on_the_start_and_epochs_have_other_seeds() -> None:
    examples = SessionLanes(log([3, 5, 2, 4, 2]))
    whole, rest = steps(examples, 2), steps(examples, 2, start=3)
    assert [(batch.items.tolist(), batch.seed) for batch in whole[3:]] == [
        (batch.items.tolist(), batch.seed) for batch in rest
    ]
    other = steps(examples, 2, epoch=1)
    assert [batch.items.tolist() for batch in other] == [batch.items.tolist() for batch in whole]
    assert {batch.seed for batch in other}.isdisjoint(batch.seed for batch in whole)


def test_sessions_are_in_stable_order_of_their_start() -> None:
    times = np.array([50, 60, 10, 20, 50, 70], np.int64)
    batches = steps(SessionLanes(log([2, 2, 2], timestamps=times)), 1)
    assert [batch.items.tolist() for batch in batches] == [[3], [1], [5]]


def test_events_that_are_not_positive_are_inputs_but_not_targets() -> None:
    batches = steps(SessionLanes(log([3], positive=np.array([True, False, True]))), 4)
    assert [batch.items.tolist() for batch in batches] == [[1], [2]]
    assert [batch.targets.tolist() for batch in batches] == [[0], [3]]


@pytest.mark.parametrize("lengths", [[1, 1], [0]])
def test_a_log_without_sessions_of_two_events_has_no_batches(lengths: list[int]) -> None:
    examples = SessionLanes(log(lengths))
    assert examples.num_batches(3) == 0
    assert steps(examples, 3) == []


def test_a_batch_can_be_moved_to_a_device() -> None:
    batch = steps(SessionLanes(log([3, 2])), 2)[0].to(torch.device("cpu"))
    assert batch.items.tolist() == [1, 4]
