"""Behaviour search: hard search equals a filter of the history, soft search equals a full sort."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.core.jagged import Jagged
from nextitem.nn.ranking.behaviour_search import search_nearest, search_same

HISTORIES = st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=4)
CANDIDATES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=8)


@settings(max_examples=80, deadline=None)
@given(HISTORIES, CANDIDATES, st.integers(1, 9))
def test_hard_search_equals_a_filter_of_the_history(
    histories: list[list[int]], candidates: list[tuple[int, int]], k: int
) -> None:
    candidates = [(row % len(histories), code) for row, code in candidates]
    codes = Jagged.from_rows(histories)
    rows, candidate_codes = torch.tensor(candidates, dtype=torch.int64).view(-1, 2).T
    result = search_same(codes, candidate_codes, rows, k)
    for p, (row, code) in enumerate(candidates):
        places = result.places[p][result.real[p]].tolist()
        filtered = [place for place, value in enumerate(histories[row]) if value == code and code > 0]
        assert places == [int(codes.offsets[row]) + place for place in filtered[-k:]]
    assert result.places.shape == result.real.shape
    assert not result.places[~result.real].any()


@pytest.mark.parametrize("k", [1, 3, 100])
def test_soft_search_equals_a_sort_by_inner_product(k: int) -> None:
    torch.manual_seed(0)
    lengths, candidates = torch.tensor([5, 0, 9]), torch.tensor([2, 3, 4])
    keys = Jagged.from_lengths(torch.randn(14, 6), lengths)
    queries = Jagged.from_lengths(torch.randn(9, 6), candidates)
    result = search_nearest(keys, queries, k)
    for p, row in enumerate(queries.row_ids().tolist()):
        start, end = keys.offsets[row], keys.offsets[row + 1]
        best = (keys.values[start:end] @ queries.values[p]).argsort(descending=True)[:k] + start
        assert result.places[p][result.real[p]].tolist() == best.tolist()


def test_hard_search_in_ten_thousand_events() -> None:
    codes = Jagged.from_rows([(torch.arange(10_000) % 50).tolist()])
    result = search_same(codes, torch.tensor([7, 49]), torch.tensor([0, 0]), 200)
    assert result.real.all()
    assert result.places[0].tolist() == list(range(7, 10_000, 50))[-200:]
