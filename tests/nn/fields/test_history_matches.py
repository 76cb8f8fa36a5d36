"""Matches of candidates with events of their history, against a comparison of every pair."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextitem.core.jagged import Jagged
from nextitem.nn.fields import history_matches as module
from nextitem.nn.fields.history_matches import history_matches

NUM_CODES = 5
CODES = st.lists(st.integers(0, NUM_CODES - 1), max_size=7)


def counts_and_since(events: list[list[int]], candidates: list[list[int]]) -> list[tuple[int, int]]:
    """Return the number of events with the code of each candidate, and the events since the last one, by loops."""
    expected = []
    for history, codes in zip(events, candidates, strict=True):
        for code in codes:
            matches = [place for place, event in enumerate(history) if event == code and code > 0]
            expected.append((len(matches), len(history) - matches[-1] if matches else 0))
    return expected


@pytest.mark.parametrize("dense_keys", [module.DENSE_KEYS, 0])
@given(rows=st.lists(st.tuples(CODES, CODES), max_size=5))
def test_matches_are_those_of_every_pair(dense_keys: int, rows: list[tuple[list[int], list[int]]]) -> None:
    events, candidates = [row[0] for row in rows], Jagged.from_rows([row[1] for row in rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DENSE_KEYS", dense_keys)
        matches = history_matches(
            Jagged.from_rows(events), candidates.values, candidates.row_ids(), num_codes=NUM_CODES
        )
    actual = zip(
        matches.of_candidates(matches.counts).tolist(), matches.of_candidates(matches.since).tolist(), strict=True
    )
    assert list(actual) == counts_and_since(events, candidates.to_lists())


def test_an_event_without_a_value_matches_nothing() -> None:
    matches = history_matches(Jagged.from_rows([[0, 2, 0]]), torch.tensor([0, 2]), torch.tensor([0, 0]), num_codes=3)
    assert matches.of_candidates(matches.counts).tolist() == [0, 1]
    assert matches.of_candidates(matches.since).tolist() == [0, 2]
