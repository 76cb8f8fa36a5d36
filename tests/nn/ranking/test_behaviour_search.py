"""The index finds what a filter finds; the nearest are those that a full sort puts first."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.core.jagged import Jagged
from nextitem.nn.ranking.behaviour_search import search_nearest, search_same

HISTORIES = st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=4)
ASKED = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=8)


@settings(max_examples=80, deadline=None)
@given(HISTORIES, ASKED, st.integers(1, 9))
def test_the_hard_search_is_a_filter(histories: list[list[int]], asked: list[tuple[int, int]], k: int) -> None:
    asked = [(row % len(histories), code) for row, code in asked]
    codes = Jagged.from_rows(histories)
    rows, wanted = torch.tensor(asked, dtype=torch.int64).view(-1, 2).T
    found = search_same(codes, wanted, rows, k)
    for p, (row, code) in enumerate(asked):
        places = found.places[p][found.real[p]].tolist()
        filtered = [place for place, value in enumerate(histories[row]) if value == code and code > 0]
        assert places == [int(codes.offsets[row]) + place for place in filtered[-k:]]
    assert found.places.shape == found.real.shape
    assert not found.places[~found.real].any()


@pytest.mark.parametrize("k", [1, 3, 100])
def test_the_soft_search_is_a_sort_by_inner_product(k: int) -> None:
    torch.manual_seed(0)
    lengths, candidates = torch.tensor([5, 0, 9]), torch.tensor([2, 3, 4])
    keys = Jagged.from_lengths(torch.randn(14, 6), lengths)
    queries = Jagged.from_lengths(torch.randn(9, 6), candidates)
    found = search_nearest(keys, queries, k)
    for p, row in enumerate(queries.row_ids().tolist()):
        start, end = keys.offsets[row], keys.offsets[row + 1]
        best = (keys.values[start:end] @ queries.values[p]).argsort(descending=True)[:k] + start
        assert found.places[p][found.real[p]].tolist() == best.tolist()


def test_ten_thousand_events_are_searched() -> None:
    codes = Jagged.from_rows([(torch.arange(10_000) % 50).tolist()])
    found = search_same(codes, torch.tensor([7, 49]), torch.tensor([0, 0]), 200)
    assert found.real.all()
    assert found.places[0].tolist() == list(range(7, 10_000, 50))[-200:]
