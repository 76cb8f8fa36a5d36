"""Jagged, compared with plain Python lists."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextitem.core.jagged import Jagged, ranges

ROWS = st.lists(st.lists(st.integers(1, 99), max_size=6), max_size=6)


@given(ROWS)
def test_to_lists_returns_the_rows_of_from_rows(rows: list[list[int]]) -> None:
    jagged = Jagged.from_rows(rows)
    assert jagged.to_lists() == rows
    assert jagged.row_ids().tolist() == [b for b, row in enumerate(rows) for _ in row]


@given(ROWS, st.integers(0, 7))
def test_last_and_drop_last_equal_slices_of_lists(rows: list[list[int]], count: int) -> None:
    jagged = Jagged.from_rows(rows)
    assert jagged.last(count).to_lists() == [row[len(row) - min(count, len(row)) :] for row in rows]
    assert jagged.drop_last(count).to_lists() == [row[: max(0, len(row) - count)] for row in rows]


@given(ROWS, st.integers(0, 7), st.sampled_from(["left", "right"]))
def test_to_padded_keeps_the_last_values(rows: list[list[int]], length: int, align: str) -> None:
    padded = Jagged.from_rows(rows).to_padded(length, align=align)
    for row, actual in zip(rows, padded.tolist(), strict=True):
        tail = row[len(row) - min(length, len(row)) :]
        padding = [0] * (length - len(tail))
        assert actual == (tail + padding if align == "left" else padding + tail)


@given(ROWS)
def test_from_padded_undoes_to_padded(rows: list[list[int]]) -> None:
    jagged = Jagged.from_rows(rows)
    assert Jagged.from_padded(jagged.to_padded(), jagged.lengths).to_lists() == rows


@given(ROWS.filter(bool), st.data())
def test_select_takes_rows_in_any_order(rows: list[list[int]], data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    selected = Jagged.from_rows(rows).select(torch.tensor(indices, dtype=torch.int64))
    assert selected.to_lists() == [rows[index] for index in indices]


def test_values_may_have_more_dimensions() -> None:
    jagged = Jagged.from_lengths(torch.arange(6.0).reshape(3, 2), torch.tensor([1, 2]))
    assert jagged.to_padded().tolist() == [[[0, 1], [0, 0]], [[2, 3], [4, 5]]]


@pytest.mark.parametrize("offsets", [[1, 3], [0, 2], [0, 4, 3], [0, 2, 1, 3]])
def test_wrong_offsets_are_refused(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets"):
        Jagged(torch.arange(3), torch.tensor(offsets))


def test_ranges_concatenates_index_ranges() -> None:
    assert ranges(torch.tensor([5, 0, 2]), torch.tensor([2, 0, 3])).tolist() == [5, 6, 2, 3, 4]


def test_last_takes_a_different_count_for_each_row() -> None:
    rows = Jagged.from_rows([[1, 2, 3], [], [4, 5], [6]])
    assert rows.last(rows.lengths - torch.tensor([1, 0, 2, 0])).to_lists() == [[2, 3], [], [], [6]]


def test_append_joins_rows_with_the_same_number() -> None:
    left, right = Jagged.from_rows([[1, 2], [], [3]]), Jagged.from_rows([[], [4], [5, 6]])
    assert left.append(right).to_lists() == [[1, 2], [4], [3, 5, 6]]
    assert right.append(left).to_lists() == [[1, 2], [4], [5, 6, 3]]
