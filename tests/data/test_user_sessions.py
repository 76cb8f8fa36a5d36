"""Tests of user sessions: lists by hand and against a plain loop, filters, windows, resuming, and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.core.errors import UserError
from nextitem.core.interactions import Interactions
from nextitem.data.examples.user_sessions import SessionsConfig, UserSessionBatch, UserSessions

Example = tuple[tuple[int, ...], tuple[int, ...]]  # history, list
Row = list[tuple[int, int, bool]]  # item, session, whether it may be a target


def log_of(rows: list[Row], *, minutes: list[int] | None = None, **columns: list[Any]) -> Interactions:
    """Return the log of these users; a column session_id unless `minutes` are the times of the events."""
    events = [event for row in rows for event in row]
    if minutes is None:
        columns["session_id"] = [session for _, session, _ in events]
    schema = {"session_id": pl.Int64} if minutes is None else None
    return Interactions(
        np.repeat(np.arange(1, len(rows) + 1), [len(row) for row in rows]).astype(np.int32),
        np.array([item for item, _, _ in events], np.int32),
        len(rows),
        9,
        timestamps=None if minutes is None else np.array(minutes, np.int64) * 60_000,
        positive=np.array([is_target for _, _, is_target in events], bool),
        columns=pl.DataFrame(columns, schema_overrides=schema),
    )


def user(items: list[int], sessions: list[int] | None = None) -> Row:
    return [(item, session, True) for item, session in zip(items, sessions or [0] * len(items), strict=True)]


def source_of(log: Interactions, *, max_length: int = 20, items_per_list: int = 3, **settings: Any) -> UserSessions:
    config = SessionsConfig.model_validate(settings)
    return UserSessions(log, max_length=max_length, items_per_list=items_per_list, config=config)


def examples_in(batch: UserSessionBatch) -> list[Example]:
    """Return the history and the items of each list of a batch."""
    histories, lists, examples = batch.items.to_lists(), iter(batch.lists.to_lists()), []
    for history, starts in zip(histories, batch.starts.to_lists(), strict=True):
        examples += [(tuple(history[:start]), tuple(next(lists))) for start in starts]
    assert next(lists, None) is None
    return examples


def examples_of(source: UserSessions, size: int = 2, **arguments: Any) -> list[Example]:
    batches = source.batches(size, **{"epoch": 0, "seed": 0, **arguments})
    return [example for batch in batches for example in examples_in(batch)]


def test_lists_at_every_event_end_with_their_session() -> None:
    log = log_of([user([1, 2, 3, 4, 5], [7, 7, 8, 8, 8]), user([6]), user([8, 9], [1, 2])])
    assert sorted(examples_of(source_of(log, cut="column"))) == [
        ((1,), (2,)),
        ((1, 2), (3, 4, 5)),
        ((1, 2, 3), (4, 5)),
        ((1, 2, 3, 4), (5,)),
        ((8,), (9,)),
    ]


def test_lists_at_sessions_continue_where_one_ends() -> None:
    log = log_of([user([1, 2, 3, 4, 5, 6, 7], [0, 0, 1, 1, 1, 1, 1])])
    assert sorted(examples_of(source_of(log, starts="sessions"))) == [((1, 2), (3, 4, 5)), ((1, 2, 3, 4, 5), (6, 7))]


def test_an_undated_log_without_sessions_has_the_next_events() -> None:
    log = log_of([user([1, 2, 3, 4, 5])])
    log = Interactions(log.user_ids, log.item_ids, 1, 9)
    assert sorted(examples_of(source_of(log, starts="sessions"))) == [
        ((1,), (2, 3, 4)),
        ((1, 2), (3, 4, 5)),
        ((1, 2, 3), (4, 5)),
        ((1, 2, 3, 4), (5,)),
    ]


def test_a_gap_begins_a_session() -> None:
    log = log_of([user([1, 2, 3, 4])], minutes=[0, 31, 61, 92])
    expected = [((1,), (2, 3)), ((1, 2), (3,)), ((1, 2, 3), (4,))]
    assert sorted(examples_of(source_of(log, cut="gap"))) == expected
    assert sorted(examples_of(source_of(log, cut="gap", max_gap=40)))[0] == ((1,), (2, 3, 4))
    assert sorted(examples_of(source_of(log, cut=None)))[0] == ((1,), (2, 3, 4))


def test_a_column_that_is_the_same_throughout_each_user_is_no_division() -> None:
    log = log_of([user([1, 2, 3, 4], [3] * 4)])
    assert source_of(log, starts="sessions").num_lists == 3  # lists at every event
    with pytest.raises(UserError, match=r"set model\.sessions\.starts = events"):
        source_of(log_of([user([1, 2])]), starts="sessions", cut="column")


def test_sessions_of_single_events_are_no_division() -> None:
    rows = [user([1, 2, 3, 4], [0, 1, 2, 2])]
    assert dict(examples_of(source_of(log_of(rows))))[1,] == (2, 3, 4)
    assert dict(examples_of(source_of(log_of(rows), cut="column")))[1,] == (2,)
    assert dict(examples_of(source_of(log_of(rows, minutes=[0, 60, 120, 121]))))[1,] == (2, 3, 4)
    assert dict(examples_of(source_of(log_of(rows, minutes=[0, 1, 120, 121]))))[1,] == (2,)
    both = log_of(rows, minutes=[0, 1, 120, 121], session_id=[0, 1, 2, 2])  # the gap divides better than the column
    assert dict(examples_of(source_of(both)))[1, 2, 3] == (4,)


def test_a_repeated_item_is_listed_once_and_leaves_room() -> None:
    log = log_of([user([1, 2, 2, 3, 2, 4, 5])])
    examples = dict(examples_of(source_of(log, cut=None)))
    assert examples[1,] == (2, 3, 4)
    assert examples[1, 2] == (2, 3, 4)
    assert examples[1, 2, 2] == (3, 2, 4)
    log = log_of([user([1, 9, 2, 2, 3, 2, 4, 4, 5], [0, 1, 1, 1, 1, 1, 1, 1, 1])])
    assert sorted(examples_of(source_of(log, starts="sessions", items_per_list=4))) == [
        ((1,), (9, 2, 3, 4)),
        ((1, 9, 2, 2, 3, 2, 4, 4), (5,)),
    ]


def test_what_is_no_target_is_history_alone() -> None:
    log = log_of([[(1, 0, True), (2, 0, False), (3, 0, True), (0, 0, True), (4, 0, True)]])
    assert sorted(examples_of(source_of(log))) == [((1, 2), (3, 4)), ((1, 2, 3), (4,))]


def test_filters_keep_good_sessions_and_all_history() -> None:
    log = log_of(
        [user([1, 2, 3, 4, 5, 6, 6], [0, 0, 1, 1, 1, 2, 2])],
        action=["view", "buy", "view", "view", "view", "buy", "like"],
        seconds=[10.0, None, 5.0, 5.0, 5.0, float("nan"), 30.0],
    )
    histories = {len(history) for history, _ in examples_of(source_of(log, min_items=2))}
    assert histories == {1, 2, 3, 4}  # the last session has one distinct item
    assert {len(history) for history, _ in examples_of(source_of(log, actions=["buy", "like"]))} == {1, 5, 6}
    assert {len(history) for history, _ in examples_of(source_of(log, total_column="seconds", min_total=15))} == {
        2, 3, 4, 5, 6,
    }  # fmt: skip
    with pytest.raises(UserError, match="leave no session"):
        source_of(log, min_items=4)
    with pytest.raises(UserError, match="no event has the action purchase; there are buy, like, view"):
        source_of(log, actions=["purchase"])
    with pytest.raises(UserError, match="no column watched; their columns are: action, seconds, session_id"):
        source_of(log, total_column="watched")
    with pytest.raises(UserError, match="action is String, not a number"):
        source_of(log, total_column="action")


def test_missing_columns_are_errors() -> None:
    log = log_of([user([1, 2])])
    bare = Interactions(log.user_ids, log.item_ids, 1, 9)
    with pytest.raises(UserError, match="no column session_id"):
        source_of(bare, cut="column")
    with pytest.raises(UserError, match="no times"):
        source_of(bare, cut="gap")


ROWS = st.lists(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.booleans()), max_size=12), min_size=1, max_size=5
)


@settings(deadline=None, max_examples=40)
@given(ROWS, st.integers(1, 5), st.integers(1, 4))
def test_lists_equal_those_of_a_plain_loop(rows: list[Row], max_length: int, items_per_list: int) -> None:
    expected = []
    for row in rows:
        events = [event for event in row if event[0]]
        ids = np.cumsum([place == 0 or events[place][1] != events[place - 1][1] for place in range(len(events))])
        last_input = len(events) - 1
        for place in range(1, len(events)):
            if not events[place][2]:
                continue
            items: list[int] = []
            targets = [n for n in range(place, len(events)) if events[n][2] and ids[n] == ids[place]]
            for later in targets[: 2 * items_per_list]:
                if events[later][0] not in items and len(items) < items_per_list:
                    items.append(events[later][0])
            end_of_window = last_input - (last_input - place) // max_length * max_length
            begin = max(0, end_of_window - max_length)
            expected.append((tuple(item for item, _, _ in events[begin:place]), tuple(items)))
    source = source_of(log_of(rows), max_length=max_length, items_per_list=items_per_list, cut="column")
    assert sorted(examples_of(source)) == sorted(expected)
    assert source.num_lists == len(expected)


def test_an_epoch_can_be_resumed_and_differs_from_the_next() -> None:
    generator = np.random.default_rng(0)
    log = log_of([user(generator.integers(1, 9, 8).tolist(), sorted(generator.integers(0, 3, 8))) for _ in range(30)])
    source = source_of(log)
    whole = list(source.batches(4, epoch=1, seed=5))
    rest = list(source.batches(4, epoch=1, seed=5, start=3))
    assert len(whole) == source.num_batches(4)
    assert [examples_in(batch) for batch in whole[3:]] == [examples_in(batch) for batch in rest]
    assert [batch.seed for batch in whole[3:]] == [batch.seed for batch in rest]
    assert examples_of(source, epoch=1) != examples_of(source, epoch=2)
    assert sorted(examples_of(source, epoch=1)) == sorted(examples_of(source, epoch=2))


def test_shares_of_processes_are_the_batch() -> None:
    log = log_of([user([1, 2, 3, 4]), user([5, 6]), user([7, 8, 9])])
    (batch,) = source_of(log).batches(3, epoch=0, seed=0)
    parts = [batch.share(rank, 2) for rank in (0, 1)]
    assert sorted(example for part in parts for example in examples_in(part)) == sorted(examples_in(batch))
    assert sum(part.loss_count for part in parts) == batch.loss_count == 6
    assert examples_in(batch.to("cpu")) == examples_in(batch)


def test_items_of_a_list_are_targets_by_weight() -> None:
    (batch,) = source_of(log_of([user([1, 2, 3, 4])])).batches(1, epoch=0, seed=0)  # lists 2 3 4, 3 4, and 4
    lists, items, weights = batch.next_items((1.0, 0.5))
    assert torch.stack([lists, items]).T.tolist() == [[0, 2], [1, 3], [2, 4], [0, 3], [1, 4]]
    assert [round(3 * weight, 6) for weight in weights.tolist()] == [1, 1, 1, 0.5, 0.5]


def test_a_sample_of_lists_keeps_their_histories() -> None:
    log = log_of([user([1, 2, 3, 4]), user([5, 6]), user([7, 8, 9])])
    (batch,) = source_of(log).batches(3, epoch=0, seed=0)
    generator, counts = torch.Generator().manual_seed(0), []
    for _ in range(100):
        part = batch.sample_lists(0.3, generator)
        assert part.items is batch.items
        assert set(examples_in(part)) <= set(examples_in(batch))
        counts.append(part.loss_count)
    assert 0.25 < sum(counts) / 600 < 0.35
    assert examples_in(batch.sample_lists(1.0, generator)) == examples_in(batch)
