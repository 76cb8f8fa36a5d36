"""Bits with counts, against plain sets."""

from __future__ import annotations

import torch
from fakes import FakeGenerator, identifier_table, requests
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.position_sets import Filters, PositionSets
from nextitem.decoding.trie import PrefixTrie


@settings(max_examples=80, deadline=None)
@given(size=st.integers(1, 140), rows=st.integers(1, 3), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_counts_and_members_are_those_of_the_mask(size: int, rows: int, share: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, size, generator=draw) < share
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


def test_words_combine_as_sets_do() -> None:
    draw = torch.Generator().manual_seed(0)
    left, right = torch.rand(1, 100, generator=draw) < 0.5, torch.rand(1, 100, generator=draw) < 0.5
    a, b = PositionSets.from_mask(left), PositionSets.from_mask(right)
    for words, mask in [(a.words & b.words, left & right), (a.words | b.words, left | right)]:
        assert torch.equal(PositionSets.from_words(words, size=100).before, PositionSets.from_mask(mask).before)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40),
    excluded=st.lists(st.integers(1, 40), max_size=6),
    k=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_filters_kept_as_bits_answer_as_allow_lists_do(
    rows: list[tuple[int, int]], excluded: list[int], k: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    trie = PrefixTrie.from_table(identifier_table([list(row) for row in rows], (4, 4)))
    masks = {name: torch.rand(len(rows) + 1, generator=draw) < 0.4 for name in ("shoes", "bags", "stock", "blocked")}
    filters, fake = Filters(trie, masks), FakeGenerator.random((4, 4), users=2, seed=seed)
    sets = [
        filters.allowed([["shoes", "bags"], ["stock"]], none_of=["blocked"]),
        filters.allowed([["bags"]]),
    ]
    wanted = torch.stack([(masks["shoes"] | masks["bags"]) & masks["stock"] & ~masks["blocked"], masks["bags"]])
    excluded = [item for item in excluded if item <= len(rows)]
    batch = requests(2, excluded=[excluded, []])
    found = beam_search(fake, batch, trie, k=k, beam_width=k, allowed=PositionSets.stacked(sets))
    expected = beam_search(fake, requests(2, excluded=[excluded, []], allowed=wanted), trie, k=k, beam_width=k)
    assert torch.equal(found.item_ids, expected.item_ids)
    counts = [int(each[1:].sum()) for each in wanted]
    assert int(counts[1]) >= int((found.item_ids[1] > 0).sum()) == min(k, counts[1])


def test_a_filter_that_leaves_one_item_finds_it_and_one_that_leaves_none_none() -> None:
    trie = PrefixTrie.from_table(identifier_table([[a, b] for a in range(4) for b in range(4)], (4, 4)))
    fake = FakeGenerator.random((4, 4), users=1, seed=0)
    for item in range(1, 17):
        only = torch.arange(17) == item
        filters = Filters(trie, {"one": only, "none": torch.zeros(17, dtype=torch.bool)})
        found = beam_search(fake, requests(1), trie, k=2, beam_width=1, allowed=filters.allowed([["one"]]))
        assert found.item_ids.tolist() == [[item, 0]]
        nothing = beam_search(fake, requests(1), trie, k=2, beam_width=1, allowed=filters.allowed([["one"], ["none"]]))
        assert nothing.item_ids.tolist() == [[0, 0]]
