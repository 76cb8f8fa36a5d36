"""Matches of candidates with events of their history, against a comparison of every pair."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextitem.core.jagged import Jagged
from nextitem.nn.fields import history_matches as module
from nextitem.nn.fields.history_matches import history_matches

SIZES = (5, 3)
CODES = st.lists(st.tuples(*(st.integers(0, size - 1) for size in SIZES)), max_size=7)
Codes = list[tuple[int, ...]]


def counts_and_since(rows: list[tuple[Codes, Codes]], field: int) -> list[tuple[int, int]]:
    """Return the number of events with the code of each candidate, and the events since the last one, by loops."""
    expected = []
    for history, candidates in rows:
        for candidate in candidates:
            matches = [
                n for n, event in enumerate(history) if event[field] == candidate[field] and candidate[field] > 0
            ]
            expected.append((len(matches), len(history) - matches[-1] if matches else 0))
    return expected


@pytest.mark.parametrize("dense_keys", [module.DENSE_KEYS, 0])
@given(rows=st.lists(st.tuples(CODES, CODES), max_size=5))
def test_matches_are_those_of_every_pair(dense_keys: int, rows: list[tuple[Codes, Codes]]) -> None:
    events, candidates = (
        [Jagged.from_rows([[code[field] for code in row[part]] for row in rows]) for field in range(len(SIZES))]
        for part in range(2)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DENSE_KEYS", dense_keys)
        matches = history_matches(
            events[0],
            [codes.values for codes in events],
            [codes.values for codes in candidates],
            candidates[0].row_ids(),
            num_codes=SIZES,
        )
    for field in range(len(SIZES)):
        counts, since = (matches.of_candidates(values, field).tolist() for values in (matches.counts, matches.since))
        assert list(zip(counts, since, strict=True)) == counts_and_since(rows, field)
