"""Unconstrained search: the likeliest sequences, which of them items have, and the repair of the others."""

from __future__ import annotations

import torch
from support.fake_generator import FakeGenerator, identifier_table, requests

from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.trie import PrefixTrie
from nextitem.decoding.unconstrained import items_of, unconstrained_search

ROWS = [[0, 1, 0], [1, 1, 1], [0, 0, 1], [0, 0, 1]]
TRIE = PrefixTrie.from_table(identifier_table(ROWS, (2, 2, 2)))


def test_sequences_are_sorted_by_their_probability() -> None:
    generator = FakeGenerator.random((2, 2, 2), users=2, seed=4)
    generated = unconstrained_search(generator, requests(2), TRIE, beam_width=8)
    for row in range(2):
        scores = [generator.log_prob(row + 1, codes) for codes in generated.codes[row].tolist()]
        torch.testing.assert_close(generated.log_probs[row], torch.tensor(scores))
        assert scores == sorted(scores, reverse=True)
        assert len(torch.unique(generated.codes[row], dim=0)) == 8
    is_item = [[codes in ROWS for codes in row] for row in generated.codes.tolist()]
    assert generated.valid.tolist() == is_item


def test_if_every_sequence_is_an_item_it_equals_the_constrained_search() -> None:
    rows = [[a, b, c] for a in range(2) for b in range(2) for c in range(2)]
    trie = PrefixTrie.from_table(identifier_table(rows, (2, 2, 2)))
    generator = FakeGenerator.random((2, 2, 2), users=3, seed=1)
    generated = unconstrained_search(generator, requests(3), trie, beam_width=4)
    constrained = beam_search(generator, requests(3), trie, k=4, beam_width=4)
    assert bool(generated.valid.all())
    assert torch.equal(items_of(generated, trie, k=4, repair=False), constrained.item_ids)


def test_a_sequence_without_an_item_is_dropped_or_repaired_by_its_prefix() -> None:
    # Likeliest first: 0 1 1 (no item; prefix 0 1 has item 1), then 0 1 0 (item 1), 0 0 1 (items 3, 4), ...
    tables = [torch.tensor([[[5.0, 0.0]]]), torch.tensor([[[0.0, 1.0]] * 2]), torch.tensor([[[0.0, 0.5]] * 4])]
    generated = unconstrained_search(FakeGenerator(tables), requests(1), TRIE, beam_width=4)
    assert generated.codes[0].tolist() == [[0, 1, 1], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert generated.valid[0].tolist() == [False, True, True, False]
    assert items_of(generated, TRIE, k=3, repair=False).tolist() == [[1, 3, 4]]
    assert items_of(generated, TRIE, k=4, repair=False).tolist() == [[1, 3, 4, 0]]
    # If not even the first code matches, the repaired sequence stands for the whole catalogue.
    trie = PrefixTrie.from_table(identifier_table([[1, 0, 0], [1, 1, 1]], (2, 2, 2)))
    generated = unconstrained_search(FakeGenerator(tables), requests(1), trie, beam_width=1)
    assert items_of(generated, trie, k=2, repair=True).tolist() == [[1, 2]]
    assert items_of(generated, trie, k=2, repair=False).tolist() == [[0, 0]]
