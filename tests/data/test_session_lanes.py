"""Session lanes: every event once, in order, one lane a session, and a clean state for each."""

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
    """Sessions of these lengths; every event is an item of its own."""
    users = np.repeat(np.arange(1, len(lengths) + 1), lengths).astype(np.int32)
    items = np.arange(1, len(users) + 1, dtype=np.int32)
    return Interactions(users, items, len(lengths), max(1, len(users)), **fields)  # type: ignore[arg-type]


def steps(examples: SessionLanes, lanes: int, *, epoch: int = 0, start: int = 0) -> list[LaneBatch]:
    return list(examples.batches(lanes, epoch=epoch, seed=5, start=start))


def test_lanes_by_hand() -> None:
    """Sessions 1-2-3, 4-5, 6-7-8-9, 10-11 in two lanes; the lane of 4-5 goes on while the other still reads."""
    found = steps(SessionLanes(log([3, 2, 4, 2])), 2)
    assert [batch.items.tolist() for batch in found] == [[1, 4], [2, 6], [10, 7], [8]]
    assert [batch.targets.tolist() for batch in found] == [[2, 5], [3, 7], [11, 8], [9]]
    assert [batch.lanes.tolist() for batch in found] == [[0, 1], [0, 1], [0, 1], [1]]
    assert [batch.begins.tolist() for batch in found] == [[True, True], [False, True], [True, False], [False]]
    assert all(batch.num_lanes == 2 for batch in found)


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, lanes=st.integers(1, 6))
def test_an_epoch_reads_every_pair_once_and_lanes_never_mix_sessions(lengths: list[int], lanes: int) -> None:
    examples = SessionLanes(log(lengths))
    batches = steps(examples, lanes)
    assert len(batches) == examples.num_batches(lanes)
    pairs = [pair for batch in batches for pair in zip(batch.items.tolist(), batch.targets.tolist(), strict=True)]
    ends = np.cumsum(lengths).tolist()
    expected = [(item, item + 1) for end, n in zip(ends, lengths, strict=True) for item in range(end - n + 1, end)]
    assert sorted(pairs) == expected  # none is lost because a full batch cannot be filled
    last: dict[int, int] = {}  # what each lane read last
    firsts = {end - n + 1 for end, n in zip(ends, lengths, strict=True) if n >= 2}
    sizes = [len(batch.items) for batch in batches]
    assert sizes == sorted(sizes, reverse=True)
    for batch in batches:
        rows = zip(batch.items.tolist(), batch.lanes.tolist(), batch.begins.tolist(), strict=True)
        for item, lane, begins in rows:
            assert begins == (item in firsts)
            assert begins or item == last[lane] + 1
            last[lane] = item


def test_any_start_gives_the_same_batches_and_epochs_draw_anew() -> None:
    examples = SessionLanes(log([3, 5, 2, 4, 2]))
    whole, rest = steps(examples, 2), steps(examples, 2, start=3)
    assert [(batch.items.tolist(), batch.seed) for batch in whole[3:]] == [
        (batch.items.tolist(), batch.seed) for batch in rest
    ]
    other = steps(examples, 2, epoch=1)
    assert [batch.items.tolist() for batch in other] == [batch.items.tolist() for batch in whole]
    assert {batch.seed for batch in other}.isdisjoint(batch.seed for batch in whole)


def test_sessions_come_in_order_of_their_start_and_ties_stay() -> None:
    times = np.array([50, 60, 10, 20, 50, 70], np.int64)
    found = steps(SessionLanes(log([2, 2, 2], timestamps=times)), 1)
    assert [batch.items.tolist() for batch in found] == [[3], [1], [5]]


def test_what_is_not_positive_is_read_but_no_target() -> None:
    found = steps(SessionLanes(log([3], positive=np.array([True, False, True]))), 4)
    assert [batch.items.tolist() for batch in found] == [[1], [2]]
    assert [batch.targets.tolist() for batch in found] == [[0], [3]]


@pytest.mark.parametrize("lengths", [[1, 1], [0]])
def test_without_a_session_of_two_events_there_is_nothing(lengths: list[int]) -> None:
    examples = SessionLanes(log(lengths))
    assert examples.num_batches(3) == 0
    assert steps(examples, 3) == []


def test_it_moves_to_a_device() -> None:
    batch = steps(SessionLanes(log([3, 2])), 2)[0].to(torch.device("cpu"))
    assert batch.items.tolist() == [1, 4]
