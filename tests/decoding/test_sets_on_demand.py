"""Lazily evaluated sets of positions, compared with masks; and searches with such sets."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_generator import FakeGenerator, identifier_table, requests

from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.sets_on_demand import FilteredSets, FilterIndex, MaskSets, SetsOnDemand
from nextitem.decoding.trie import PrefixTrie


def flat_trie(size: int) -> PrefixTrie:
    """Return a trie in which every item has its own code, in the order of the items."""
    return PrefixTrie.from_table(identifier_table([[item] for item in range(size)], (size,)))


def both_kinds(size: int, share: float, seed: int) -> list[tuple[SetsOnDemand, torch.Tensor]]:
    """Return three sets from masks, and three combined from stored sets, each with the masks [3, size] they equal."""
    draw = torch.Generator().manual_seed(seed)
    trie = flat_trie(size)
    mask = torch.rand(3, size + 1, generator=draw) < share
    stored = {name: torch.rand(size + 1, generator=draw) < share for name in "abcd"}
    filters = FilterIndex(trie, stored)
    rules = [filters.allowed(), filters.allowed([["a", "b"], ["c"]], ["d"]), filters.allowed([["a"], []])]
    a, b, c, d = stored.values()
    combined = torch.stack([torch.ones_like(a), (a | b) & c & ~d, torch.zeros_like(a)])
    return [(MaskSets(mask, trie), mask[:, 1:]), (FilteredSets.stacked(rules), combined[:, 1:])]


def test_filters_of_another_trie_or_another_number_of_requests_raise() -> None:
    table = identifier_table([[item] for item in range(9)], (9,))
    live = torch.arange(10) != 1
    first, other, equal = (PrefixTrie.from_table(table, live=items) for items in (None, live, None))
    mask = torch.isin(torch.arange(10), torch.tensor([3, 4, 5]))
    filters = FilterIndex(first, {"few": mask})
    batch, generator = requests(2), FakeGenerator.random((9,), users=2, seed=0)
    for trie in (first, equal):
        answer = beam_search(generator, batch, trie, k=3, beam_width=3, allowed=filters.allowed([["few"]]))
        assert answer.item_ids.sort(1).values.tolist() == [[3, 4, 5]] * 2
    with pytest.raises(ValueError, match="another trie"):
        beam_search(generator, batch, other, k=3, beam_width=3, allowed=filters.allowed([["few"]]))
    three = FilteredSets.stacked([filters.allowed([["few"]])] * 3)
    with pytest.raises(ValueError, match="3 sets for 2 requests"):
        beam_search(generator, batch, first, k=3, beam_width=3, allowed=three)
    with pytest.raises(ValueError, match="different filter indexes"):
        FilteredSets.stacked([filters.allowed(), FilterIndex(first, {"few": mask}).allowed()])


@settings(max_examples=80, deadline=None)
@given(
    size=st.integers(1, 40) | st.integers(2000, 7000),
    share=st.sampled_from([0.0, 0.0003, 0.01, 0.4, 1.0]),
    seed=st.integers(0, 999),
)
def test_sets_answer_queries_as_masks_do(size: int, share: float, seed: int) -> None:
    """Long ranges in sparse sets need whole sets; short ranges and dense sets do not."""
    draw = torch.Generator().manual_seed(seed)
    for sets, mask in both_kinds(size, share, seed):
        rows = torch.randint(0, 3, (30,), generator=draw)
        edges = torch.randint(0, size + 1, (30, 2), generator=draw).sort(1).values
        edges[:3] = torch.tensor([0, size])
        starts, ends = edges.unbind(1)
        members = [mask[row, low:high].nonzero()[:, 0] + low for row, (low, high) in zip(rows, edges, strict=True)]
        counts = torch.tensor([len(positions) for positions in members])
        for number in (0, 1, 40):
            limit = torch.full((30,), number)
            assert torch.equal(sets.has_more_than(rows, starts, ends, limit), counts > number)
            query, positions = sets.members(rows, starts, ends, limit)
            assert [positions[query == row].tolist() for row in range(30)] == [
                expected[:number].tolist() for expected in members
            ]
        positions = torch.randint(0, size, (30,), generator=draw)
        assert torch.equal(sets.contains(rows, positions), mask[rows, positions])


@pytest.mark.parametrize("kind", [0, 1])
def test_dense_sets_are_never_materialised(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sets, mask = both_kinds(6000, 0.5, 0)[kind]
    sparse, _ = both_kinds(6000, 0.0, 0)[kind]
    for instance in (sets, sparse):
        monkeypatch.setattr(instance, "materialise", lambda rows: pytest.fail("materialised"))
    row = torch.tensor([1])
    assert sets.has_more_than(row, row * 0, row * 6000, row * 9).item() == (int(mask[1].sum()) > 9)
    assert not sets.is_small(row).item()
    with pytest.raises(pytest.fail.Exception, match="materialised"):
        sparse.has_more_than(row, row * 0, row * 6000, row * 0)


def test_several_threads_can_query_one_set() -> None:
    sets, mask = both_kinds(5000, 0.0005, 3)[0]
    wrong_rows: list[int] = []

    def query(seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        for _ in range(40):
            rows = torch.randint(0, 3, (4,), generator=draw)
            answers = sets.has_more_than(rows, rows * 0, rows * 0 + 5000, rows * 0 + 1)
            wrong_rows.extend(rows[answers != (mask.sum(1)[rows] > 1)].tolist())

    threads = [threading.Thread(target=query, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong_rows


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40),
    excluded=st.lists(st.integers(1, 40), max_size=6),
    k=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_filters_stored_as_bits_answer_as_allow_lists_do(
    rows: list[tuple[int, int]], excluded: list[int], k: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    trie = PrefixTrie.from_table(identifier_table([list(row) for row in rows], (4, 4)))
    masks = {name: torch.rand(len(rows) + 1, generator=draw) < 0.4 for name in ("shoes", "bags", "stock", "blocked")}
    filters, generator = FilterIndex(trie, masks), FakeGenerator.random((4, 4), users=2, seed=seed)
    sets = [
        filters.allowed([["shoes", "bags"], ["stock"]], none_of=["blocked"]),
        filters.allowed([["bags"]]),
    ]
    allowed = torch.stack([(masks["shoes"] | masks["bags"]) & masks["stock"] & ~masks["blocked"], masks["bags"]])
    excluded = [item for item in excluded if item <= len(rows)]
    batch = requests(2, excluded=[excluded, []])
    filtered = beam_search(generator, batch, trie, k=k, beam_width=k, allowed=FilteredSets.stacked(sets))
    expected = beam_search(generator, requests(2, excluded=[excluded, []], allowed=allowed), trie, k=k, beam_width=k)
    assert torch.equal(filtered.item_ids, expected.item_ids)
    counts = [int(mask[1:].sum()) for mask in allowed]
    assert int(counts[1]) >= int((filtered.item_ids[1] > 0).sum()) == min(k, counts[1])


def test_a_filter_of_one_item_returns_it_and_an_empty_one_returns_nothing() -> None:
    trie = PrefixTrie.from_table(identifier_table([[a, b] for a in range(4) for b in range(4)], (4, 4)))
    generator = FakeGenerator.random((4, 4), users=1, seed=0)
    for item in range(1, 17):
        is_item = torch.arange(17) == item
        filters = FilterIndex(trie, {"one": is_item, "none": torch.zeros(17, dtype=torch.bool)})
        answer = beam_search(generator, requests(1), trie, k=2, beam_width=1, allowed=filters.allowed([["one"]]))
        assert answer.item_ids.tolist() == [[item, 0]]
        empty = beam_search(
            generator, requests(1), trie, k=2, beam_width=1, allowed=filters.allowed([["one"], ["none"]])
        )
        assert empty.item_ids.tolist() == [[0, 0]]


@settings(max_examples=40, deadline=None)
@given(
    share=st.sampled_from([0.002, 0.02, 0.3]),
    sizes=st.sampled_from([(40, 40), (1, 3000)]),
    k=st.integers(1, 12),
    seed=st.integers(0, 99),
    renormalise=st.booleans(),
)
def test_checking_the_likeliest_children_first_loses_no_item(
    share: float, sizes: tuple[int, int], k: int, seed: int, renormalise: bool
) -> None:
    """The beams have many more children than are checked at first, and few of them are allowed."""
    draw = torch.Generator().manual_seed(seed)
    codes = torch.stack([torch.randint(0, size, (3000,), generator=draw) for size in sizes], dim=1)
    trie = PrefixTrie.from_table(identifier_table(codes.tolist(), sizes))
    mask = torch.rand(2, 3001, generator=draw) < share
    mask[:, 0] = False
    generator = FakeGenerator.random(sizes, users=2, seed=seed)
    search = partial(beam_search, generator, k=k, beam_width=k, renormalise=renormalise)
    masked = search(requests(2, allowed=mask), trie)
    filters = FilterIndex(trie, {"first": mask[0], "second": mask[1]})
    sets = FilteredSets.stacked([filters.allowed([["first"]]), filters.allowed([["second"]])])
    filtered = search(requests(2), trie, allowed=sets)
    assert torch.equal(filtered.item_ids, masked.item_ids)
    assert torch.equal(filtered.scores, masked.scores)
    for row in range(2):
        trie_of_allowed = PrefixTrie.from_table(identifier_table(codes.tolist(), sizes), live=mask[row])
        expected = search(requests(2), trie_of_allowed)
        assert masked.item_ids[row].tolist() == expected.item_ids[row].tolist()
        torch.testing.assert_close(masked.scores[row], expected.scores[row])
