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
from nextitem.nn.ranking.user_streams import StreamReader, UserStreams

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
    """Return the tokens of one request by the definition."""
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
    tokens.sort(key=lambda token: token[1])
    surplus = max(0, len(tokens) - 6)
    return tokens[-(-surplus // 3) * 3 :]


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
