"""Diverse beam search: one group is a beam search, more groups differ, and all items are legal."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_generator import FakeGenerator, identifier_table, requests

from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.diverse_beams import diverse_beam_search
from nextitem.decoding.trie import PrefixTrie

GRID = [[a, b] for a in range(3) for b in range(3)]
TRIE = PrefixTrie.from_table(identifier_table(GRID, (3, 3)))


def test_one_group_is_an_ordinary_beam_search() -> None:
    generator = FakeGenerator.random((3, 3), users=4, seed=0)
    batch = requests(4, excluded=[[1], [], [5, 6], []])
    plain = beam_search(generator, batch, TRIE, k=4, beam_width=4)
    diverse = diverse_beam_search(generator, batch, TRIE, k=4, beam_width=4, groups=1, penalty=1.0)
    assert torch.equal(diverse.item_ids, plain.item_ids)
    torch.testing.assert_close(diverse.scores, plain.scores)


def test_a_high_penalty_gives_the_groups_different_first_codes() -> None:
    tables = [torch.tensor([[[6.0, 1.0, 0.0]]]), torch.tensor([[[2.0, 1.0, 0.0]] * 3])]
    generator = FakeGenerator(tables)
    plain = beam_search(generator, requests(1), TRIE, k=3, beam_width=3)
    assert {(item - 1) // 3 for item in plain.item_ids[0].tolist()} == {0}
    diverse = diverse_beam_search(generator, requests(1), TRIE, k=3, beam_width=3, groups=3, penalty=10.0)
    assert {(item - 1) // 3 for item in diverse.item_ids[0].tolist()} == {0, 1, 2}
    # Scores are still log-probabilities, without the penalty.
    logs = [torch.log_softmax(table[0, 0], 0) for table in tables]
    for item, score in zip(diverse.item_ids[0].tolist(), diverse.scores[0].tolist(), strict=True):
        assert score == pytest.approx(float(logs[0][(item - 1) // 3] + logs[1][(item - 1) % 3]), abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=12),
    excluded=st.lists(st.integers(1, 12), max_size=5),
    k=st.integers(1, 8),
    groups=st.integers(1, 4),
    penalty=st.floats(0, 5),
    seed=st.integers(0, 99),
)
def test_items_are_legal_distinct_and_as_many_as_possible(
    rows: list[tuple[int, int]], excluded: list[int], k: int, groups: int, penalty: float, seed: int
) -> None:
    trie = PrefixTrie.from_table(identifier_table([list(row) for row in rows], (4, 3)))
    excluded = [item for item in excluded if item <= len(rows)]
    generator = FakeGenerator.random((4, 3), users=1, seed=seed)
    diverse = diverse_beam_search(
        generator,
        requests(1, excluded=[excluded]),
        trie,
        k=k,
        beam_width=max(groups, k),
        groups=groups,
        penalty=penalty,
    )
    items = [item for item in diverse.item_ids[0].tolist() if item]
    assert len(items) == len(set(items)) == min(k, len(rows) - len(set(excluded)))
    assert not set(items) & set(excluded)
    assert diverse.scores[0, : len(items)].tolist() == sorted(diverse.scores[0, : len(items)].tolist(), reverse=True)


def test_more_groups_than_beams_raise() -> None:
    generator = FakeGenerator.random((3, 3), users=1, seed=0)
    with pytest.raises(ValueError, match="groups"):
        diverse_beam_search(generator, requests(1), TRIE, k=1, beam_width=2, groups=3, penalty=1.0)
