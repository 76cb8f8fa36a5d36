"""Which rows are continued, which read anew, which left alone, and that they come back in order."""

from __future__ import annotations

import pytest
import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.history_state import HistoryState
from nextitem.core.jagged import Jagged
from nextitem.nn.attention.incremental import read_on

LIMIT = 4


class Summing:
    """Its vector is the sum of a history's last LIMIT items; its cache holds those items, right-padded."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[list[int]]]] = []

    def __call__(self, batch: SequenceBatch, state: HistoryState | None) -> HistoryState:
        assert batch.state is None
        self.asked.append(("anew" if state is None else "on", batch.items.to_lists()))
        recent = batch.items.last(LIMIT)
        if state is None:
            total = recent.to_padded().sum(1)
        else:
            further = batch.items.last(batch.items.lengths - state.lengths)
            total = state.vectors[:, 0].long() + further.to_padded().sum(1)
        return HistoryState(batch.items.lengths, total[:, None].float(), {"items": recent.to_padded()})


def read(reader: Summing, histories: list[list[int]], state: HistoryState | None = None) -> HistoryState:
    batch = SequenceBatch(Jagged.from_rows(histories), state=state)
    return read_on(batch, state, reader, limit=LIMIT, empty=torch.zeros(1))


def test_each_row_is_read_in_its_own_way_and_comes_back_in_its_place() -> None:
    reader = Summing()
    state = read(reader, [[], [1], [1, 2, 3, 4], [5, 6], []])
    reader.asked.clear()
    longer = [[7], [1, 1], [1, 2, 3, 4, 5], [5, 6], []]
    found = read(reader, longer, state)
    assert reader.asked == [("on", [[1, 1]]), ("anew", [[7], [1, 2, 3, 4, 5]])]
    assert found.vectors[:, 0].tolist() == [7, 2, 14, 11, 0]
    assert found.lengths.tolist() == [1, 2, 5, 2, 0]
    assert found.cache["items"].tolist() == [[7, 0, 0, 0], [1, 1, 0, 0], [2, 3, 4, 5], [5, 6, 0, 0], [0, 0, 0, 0]]


def test_where_all_rows_go_one_way_nothing_is_copied() -> None:
    reader = Summing()
    state = read(reader, [[1], [2, 3]])
    assert read(reader, [[1], [2, 3]], state).vectors is state.vectors
    read(reader, [[1, 1], [2, 3, 1]], state)
    assert [kind for kind, _ in reader.asked] == ["anew", "on"]


def test_no_histories_at_all() -> None:
    assert read(Summing(), []).vectors.shape == (0, 1)
    assert read(Summing(), [[], []]).vectors.tolist() == [[0], [0]]


def test_a_state_that_has_read_more_than_there_is() -> None:
    reader = Summing()
    state = read(reader, [[1, 2]])
    with pytest.raises(ValueError, match="histories in full"):
        read(reader, [[1]], state)
