"""PositionSets: counts and members, compared with boolean masks."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.decoding.position_sets import PositionSets


@settings(max_examples=80, deadline=None)
@given(size=st.integers(1, 140), rows=st.integers(1, 3), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_counts_and_members_are_those_of_the_mask(size: int, rows: int, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, size, generator=generator) < share
    sets = PositionSets.from_mask(mask)
    row = torch.arange(rows)[:, None, None].expand(rows, size + 1, size + 1)
    starts, ends = torch.meshgrid(torch.arange(size + 1), torch.arange(size + 1), indexing="ij")
    starts, ends = torch.minimum(starts, ends).expand_as(row), torch.maximum(starts, ends).expand_as(row)
    running = torch.cat([torch.zeros(rows, 1, dtype=torch.int64), mask.cumsum(1)], dim=1)
    expected = running.gather(1, ends.flatten(1)) - running.gather(1, starts.flatten(1))
    assert torch.equal(sets.count(row, starts, ends).flatten(1), expected)
    members = mask.nonzero()
    ranks = running[members[:, 0], members[:, 1]]
    assert torch.equal(sets.select(members[:, 0], ranks), members[:, 1])


def test_combined_words_are_the_combined_sets() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.rand(1, 100, generator=generator) < 0.5, torch.rand(1, 100, generator=generator) < 0.5
    a, b = PositionSets.from_mask(left), PositionSets.from_mask(right)
    for words, mask in [(a.words & b.words, left & right), (a.words | b.words, left | right)]:
        assert torch.equal(
            PositionSets.from_words(words, size=100).counts_before, PositionSets.from_mask(mask).counts_before
        )
