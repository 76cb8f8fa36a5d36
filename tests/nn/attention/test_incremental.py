"""Which rows are extended, which read from the start, which left alone, and that they come back in order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.history_state import HistoryState, StaleStateError
from nextitem.core.jagged import Jagged
from nextitem.nn.attention.incremental import Window, extend_history_state

LIMIT = 4


class Summing:
    """Its vector is the sum of the items that it reads; its cache holds those items, right-padded."""

    def __init__(self, step: int = 1) -> None:
        self.window = Window(LIMIT, step)
        self.reads: list[tuple[str, list[list[int]]]] = []

    def __call__(self, batch: SequenceBatch, state: HistoryState | None) -> HistoryState:
        assert batch.state is None
        self.reads.append(("start" if state is None else "on", batch.items.to_lists()))
        items = self.window.of(batch.items)
        if state is None:
            total = items.to_padded().sum(1)
        else:
            further = batch.items.last(batch.items.lengths - state.lengths)
            total = state.user_vectors[:, 0].long() + further.to_padded().sum(1)
        return HistoryState(batch.items.lengths, total[:, None].float(), {"items": items.to_padded()})


def read(
    reader: Summing, histories: list[list[int]], state: HistoryState | None = None, *, is_extensible: bool = True
) -> HistoryState:
    batch = SequenceBatch(Jagged.from_rows(histories), state=state)
    empty = torch.zeros(1)
    return extend_history_state(
        batch, state, reader, window=reader.window, version="v1", empty=empty, is_extensible=is_extensible
    )


def test_each_row_is_read_in_its_own_way_and_comes_back_in_its_place() -> None:
    reader = Summing()
    state = read(reader, [[], [1], [1, 2, 3, 4], [5, 6], []])
    reader.reads.clear()
    longer = [[7], [1, 1], [1, 2, 3, 4, 5], [5, 6], []]
    found = read(reader, longer, state)
    assert reader.reads == [("on", [[1, 1]]), ("start", [[7], [1, 2, 3, 4, 5]])]
    assert found.user_vectors[:, 0].tolist() == [7, 2, 14, 11, 0]
    assert found.lengths.tolist() == [1, 2, 5, 2, 0]
    assert found.starts.tolist() == [0, 0, 1, 0, 0]
    assert found.version == "v1"
    assert found.cache["items"].tolist() == [[7, 0, 0, 0], [1, 1, 0, 0], [2, 3, 4, 5], [5, 6, 0, 0], [0, 0, 0, 0]]


def test_where_all_rows_go_one_way_nothing_is_copied() -> None:
    reader = Summing()
    state = read(reader, [[1], [2, 3]])
    assert read(reader, [[1], [2, 3]], state).vectors is state.vectors
    read(reader, [[1, 1], [2, 3, 1]], state)
    assert [kind for kind, _ in reader.reads] == ["start", "on"]


def test_no_histories_at_all() -> None:
    assert read(Summing(), []).user_vectors.shape == (0, 1)
    assert read(Summing(), [[], []]).user_vectors.tolist() == [[0], [0]]


def test_a_state_that_has_read_more_than_there_is() -> None:
    reader = Summing()
    state = read(reader, [[1, 2]])
    with pytest.raises(ValueError, match="histories in full"):
        read(reader, [[1]], state)


def test_a_state_of_another_version_is_refused_unless_it_is_empty() -> None:
    reader = Summing()
    state = read(reader, [[1, 2], []])
    with pytest.raises(StaleStateError, match="other weights"):
        read(reader, [[1, 2, 3], [4]], replace(state, version="v0"))
    found = read(reader, [[4], [5, 6]], HistoryState.unread(2))
    assert found.user_vectors[:, 0].tolist() == [4, 11]
    assert found.version == "v1"


def test_where_a_window_begins_depends_on_the_number_of_events_alone() -> None:
    lengths = torch.arange(12)
    assert Window(4).starts(lengths).tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7]
    assert Window(4, 2).starts(lengths).tolist() == [0, 0, 0, 0, 0, 2, 2, 4, 4, 6, 6, 8]
    assert Window(4, 4).starts(lengths).tolist() == [0, 0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8]
    for step in (1, 2, 3, 4):
        sizes = Window(4, step).lengths(lengths[1:])
        assert int(sizes.min()) >= 1
        assert int(sizes.max()) == 4
    assert Window(3, 2).of(Jagged.from_rows([[1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5]])).to_lists() == [
        [1, 2, 3],
        [3, 4],
        [3, 4, 5],
    ]
    for step in (0, 5):
        with pytest.raises(ValueError, match=f"window_step = {step}"):
            Window(4, step)


def test_a_window_that_slides_in_steps_is_read_on_in_between() -> None:
    reader = Summing(step=2)
    history = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    state = read(reader, [history[:1]])
    for length in range(2, len(history) + 1):
        state = read(reader, [history[:length]], state)
        assert state.user_vectors.tolist() == read(Summing(step=2), [history[:length]]).user_vectors.tolist()
    kinds = [kind for kind, _ in reader.reads]
    assert kinds == ["start", "on", "on", "on", "start", "on", "start", "on", "start"]


def test_where_a_new_event_changes_the_earlier_ones_nothing_is_extended() -> None:
    reader = Summing()
    state = read(reader, [[1], [2, 3]], is_extensible=False)
    found = read(reader, [[1, 5], [2, 3]], state, is_extensible=False)
    assert [kind for kind, _ in reader.reads] == ["start", "start"]
    assert found.user_vectors.tolist() == [[6], [5]]
