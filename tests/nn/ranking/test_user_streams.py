"""User streams: what each request sees, compared with a loop; shared by the requests of a user, and by nobody else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.nn.attention.incremental import Window
from nextitem.nn.ranking.user_streams import UNDATED, StreamReader, UserStreams

DELAY = 10
Token = tuple[int, int, tuple[float, ...]]


def reader(*, length: int = 6, step: int = 3, reads_impressions: bool = True) -> StreamReader:
    return StreamReader(Window(length, step), 2, ("click", "buy"), DELAY, reads_impressions)


def seen_tokens(streams: UserStreams) -> list[list[Token]]:
    """Return item, time and actions of the tokens that each request sees."""
    assert streams.times is not None
    firsts = streams.items.offsets[streams.streams].tolist()
    return [
        [
            (int(streams.items.values[place]), int(streams.times[place]), tuple(streams.actions[place].tolist()))
            for place in range(first, first + count)
        ]
        for first, count in zip(firsts, streams.visible.tolist(), strict=True)
    ]


def make(seed: int, num_requests: int) -> SequenceBatch:
    """Return requests of three users and of visitors; histories of a user end at the time of the request."""
    rng = np.random.default_rng(seed)
    events, pages = {}, {}
    for user in (1, 2, 3):
        times = np.sort(rng.integers(0, 60, rng.integers(0, 9)))
        events[user] = [(int(rng.integers(1, 9)), int(time), int(rng.integers(0, 4))) for time in times]
        times = np.sort(rng.integers(0, 60, rng.integers(0, 7)))
        labels = [(1.0, 0.0), (0.0, float("nan")), (1.0, 1.0)]
        pages[user] = [(int(rng.integers(1, 9)), int(time), labels[rng.integers(3)]) for time in times]
    users = rng.integers(0, 4, num_requests)
    request_times = rng.integers(1, 70, num_requests)
    log = [[row for row in events[max(1, u)] if row[1] < t] for u, t in zip(users, request_times, strict=True)]
    seen = [[row for row in pages[max(1, u)] if row[1] < t] for u, t in zip(users, request_times, strict=True)]
    items = Jagged.from_rows([[row[0] for row in rows] for rows in log])
    shown_items = Jagged.from_rows([[row[0] for row in rows] for rows in seen])
    return SequenceBatch(
        items,
        user_ids=torch.from_numpy(users * 1_000_003),
        actions=Jagged.from_rows([[row[2] for row in rows] for rows in log]),
        timestamps=Jagged.from_rows([[row[1] for row in rows] for rows in log]),
        shown_items=shown_items,
        shown_times=Jagged.from_rows([[row[1] for row in rows] for rows in seen]),
        shown_labels={
            name: shown_items.with_values(torch.tensor([row[2][n] for rows in seen for row in rows]))
            for n, name in enumerate(("click", "buy"))
        },
        request_times=torch.from_numpy(request_times),
    )


def expected_tokens(batch: SequenceBatch, row: int) -> list[Token]:
    """Return the tokens of one request by the definition: those of its window."""
    tokens = whole_tokens(batch, row)
    surplus = max(0, len(tokens) - 6)
    return tokens[-(-surplus // 3) * 3 :]


def whole_tokens(batch: SequenceBatch, row: int) -> list[Token]:
    """Return all tokens of one request by the definition."""
    one = batch.select(torch.tensor([row]))
    assert one.actions is not None
    assert one.timestamps is not None
    assert one.shown_items is not None
    assert one.shown_times is not None
    assert one.request_times is not None
    tokens: list[Token] = []
    for item, time, code in zip(
        one.items.values.tolist(), one.timestamps.values.tolist(), one.actions.values.tolist(), strict=True
    ):
        kinds = [0.0] * 6
        kinds[min(code, 2)] = 1.0
        tokens.append((item, time, tuple(kinds)))
    for place, (item, time) in enumerate(
        zip(one.shown_items.values.tolist(), one.shown_times.values.tolist(), strict=True)
    ):
        if time + DELAY <= int(one.request_times[0]):
            done = [float(one.shown_labels[name].values[place] > 0) for name in ("click", "buy")]
            tokens.append((item, time + DELAY, (0.0, 0.0, 0.0, 1.0, *done)))
    return sorted(tokens, key=lambda token: token[1])


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10_000), num_requests=st.integers(1, 12))
def test_requests_see_what_the_definition_says(seed: int, num_requests: int) -> None:
    batch = make(seed, num_requests)
    streams = reader().read(batch)
    assert seen_tokens(streams) == [expected_tokens(batch, row) for row in range(num_requests)]
    assert streams.items.num_rows <= num_requests
    ungrouped = reader().read(batch, torch.zeros(num_requests, dtype=torch.int64))
    assert seen_tokens(ungrouped) == seen_tokens(streams)
    assert ungrouped.streams.tolist() == list(range(num_requests))


def test_requests_of_a_user_share_a_stream_and_visitors_do_not() -> None:
    batch = SequenceBatch(
        Jagged.from_rows([[1, 2], [1], [1, 2], [1], [7], [1, 2, 3]]),
        user_ids=torch.tensor([5, 5, 6, 0, 5, 0]),
    )
    streams = reader().read(batch)
    owners = streams.streams.tolist()
    assert owners[0] == owners[1]
    assert len({owners[0], owners[2], owners[3], owners[4], owners[5]}) == 5  # row 4 has another history
    assert streams.visible.tolist() == [2, 1, 2, 1, 1, 3]


def test_a_window_that_moves_begins_another_stream() -> None:
    batch = SequenceBatch(Jagged.from_rows([[1] * 6, [1] * 7, [1] * 8]), user_ids=torch.tensor([5, 5, 5]))
    streams = reader().read(batch)
    assert streams.items.lengths.tolist() == [6, 5]
    assert streams.visible.tolist() == [6, 4, 5]
    assert streams.starts.tolist() == [0, 3]


def test_selected_tokens_keep_what_each_request_sees() -> None:
    batch = make(3, 9)
    streams = reader().read(batch)
    is_read = torch.arange(len(streams.items.values)) % 3 != 1
    firsts = streams.items.offsets[streams.streams]
    expected = [
        [token for place, token in enumerate(tokens) if bool(is_read[int(first) + place])]
        for tokens, first in zip(seen_tokens(streams), firsts, strict=True)
    ]
    assert seen_tokens(streams.select(is_read)) == expected


def test_digests_tell_items_times_and_actions_apart() -> None:
    batch = make(3, 9)
    streams = reader().read(batch)
    assert streams.times is not None
    digests = streams.digests()
    for changed in (
        replace(streams, items=streams.items.with_values(streams.items.values + 1)),
        replace(streams, times=streams.times + 1),
        replace(streams, actions=1 - streams.actions),
    ):
        assert not bool((changed.digests() == digests).any())


def period_tokens(batch: SequenceBatch, row: int, code: int) -> list[Token]:
    """Return the tokens of one request with periods of 20, by the definition: user, history, and since the cut."""
    assert batch.request_times is not None
    now = int(batch.request_times[row])
    cut = now // 20 * 20
    tokens = [token for token in whole_tokens(batch, row) if token[1] < now]
    history = [token for token in tokens if token[1] < cut]
    recent = [token for token in tokens if token[1] >= cut]
    first = -(-max(0, len(history) - 6) // 3) * 3
    first_recent = -(-max(0, len(recent) - 4) // 2) * 2
    return [(-1 - code, UNDATED, (0.0,) * 6), *history[first:], *recent[first_recent:]]


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10_000), num_requests=st.integers(1, 12))
def test_periods_have_what_the_definition_says(seed: int, num_requests: int) -> None:
    batch = make(seed, num_requests)
    assert batch.user_ids is not None
    assert batch.request_times is not None
    codes = batch.user_ids[:, None] % 5 + batch.request_times[:, None] // 35  # a feature that changes once
    period_reader = replace(reader(), recent_window=Window(4, 2))
    streams = period_reader.read_periods(batch, codes, 20)
    expected = [period_tokens(batch, row, int(codes[row, 0])) for row in range(num_requests)]
    assert seen_tokens(streams) == expected
    assert streams.num_static is not None
    num_static = streams.num_static[streams.streams].tolist()
    for row, tokens in enumerate(expected):
        cut = int(batch.request_times[row]) // 20 * 20
        assert num_static[row] == sum(token[1] < cut for token in tokens)
    alone = period_reader.read_periods(batch, codes, 20, is_shared=False)
    assert alone.streams.tolist() == list(range(num_requests))
    assert seen_tokens(alone) == expected


def test_requests_of_a_period_share_a_stream_and_those_of_the_next_do_not() -> None:
    items, times = [1, 2, 3, 4], [5, 21, 23, 41]
    counts, request_times, users = [2, 3, 4, 2, 2], [22, 30, 50, 22, 22], [7, 7, 7, 8, 7]
    batch = SequenceBatch(
        Jagged.from_rows([items[:count] for count in counts]),
        user_ids=torch.tensor(users),
        timestamps=Jagged.from_rows([times[:count] for count in counts]),
        request_times=torch.tensor(request_times),
    )
    codes = torch.tensor([[1], [1], [1], [1], [2]])
    streams = replace(reader(), recent_window=Window(4, 2)).read_periods(batch, codes, 20)
    owners = streams.streams.tolist()
    assert owners[0] == owners[1]
    assert len({owners[0], owners[2], owners[3], owners[4]}) == 4  # next period; another user; other features
    assert streams.visible.tolist() == [3, 4, 5, 3, 3]


def test_events_out_of_order_are_sorted_and_undated_ones_are_all_history() -> None:
    batch = SequenceBatch(
        Jagged.from_rows([[1, 2, 3]]),
        timestamps=Jagged.from_rows([[25, 5, 22]]),
        request_times=torch.tensor([30]),
    )
    period_reader, codes = replace(reader(), recent_window=Window(4, 2)), torch.zeros(1, 0, dtype=torch.int64)
    streams = period_reader.read_periods(batch, codes, 20)
    assert streams.num_static is not None
    assert (streams.items.values.tolist(), streams.num_static.tolist()) == ([2, 3, 1], [1])
    undated = period_reader.read_periods(replace(batch, timestamps=None, request_times=None), codes, 20)
    assert undated.num_static is not None
    assert (undated.items.values.tolist(), undated.num_static.tolist()) == ([1, 2, 3], [3])
