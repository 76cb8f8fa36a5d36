"""Free decoding: the likeliest sequences, which of them are items, and the repair."""

from __future__ import annotations

import torch
from support.fake_generator import FakeGenerator, identifier_table, requests

from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.trie import PrefixTrie
from nextitem.decoding.unconstrained import items_of, unconstrained_search

ROWS = [[0, 1, 0], [1, 1, 1], [0, 0, 1], [0, 0, 1]]
TRIE = PrefixTrie.from_table(identifier_table(ROWS, (2, 2, 2)))


def test_all_sequences_come_in_order_of_their_probability() -> None:
    fake = FakeGenerator.random((2, 2, 2), users=2, seed=4)
    found = unconstrained_search(fake, requests(2), TRIE, beam_width=8)
    for row in range(2):
        scores = [fake.log_prob(row + 1, codes) for codes in found.codes[row].tolist()]
        torch.testing.assert_close(found.log_probs[row], torch.tensor(scores))
        assert scores == sorted(scores, reverse=True)
        assert len(torch.unique(found.codes[row], dim=0)) == 8
    real = [[codes in ROWS for codes in row] for row in found.codes.tolist()]
    assert found.valid.tolist() == real


def test_where_everything_is_an_item_it_equals_the_constrained_search() -> None:
    rows = [[a, b, c] for a in range(2) for b in range(2) for c in range(2)]
    trie = PrefixTrie.from_table(identifier_table(rows, (2, 2, 2)))
    fake = FakeGenerator.random((2, 2, 2), users=3, seed=1)
    free = unconstrained_search(fake, requests(3), trie, beam_width=4)
    kept = beam_search(fake, requests(3), trie, k=4, beam_width=4)
    assert bool(free.valid.all())
    assert torch.equal(items_of(free, trie, k=4, repair=False), kept.item_ids)


def test_what_is_no_item_is_dropped_or_repaired_by_its_longest_prefix() -> None:
    # Likeliest first: 0 1 1 (nobody's; prefix 0 1 has item 1), then 0 1 0 (item 1), 0 0 1 (items 3, 4), ...
    tables = [torch.tensor([[[5.0, 0.0]]]), torch.tensor([[[0.0, 1.0]] * 2]), torch.tensor([[[0.0, 0.5]] * 4])]
    spelt = unconstrained_search(FakeGenerator(tables), requests(1), TRIE, beam_width=4)
    assert spelt.codes[0].tolist() == [[0, 1, 1], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert spelt.valid[0].tolist() == [False, True, True, False]
    assert items_of(spelt, TRIE, k=3, repair=False).tolist() == [[1, 3, 4]]
    assert items_of(spelt, TRIE, k=4, repair=False).tolist() == [[1, 3, 4, 0]]
    # Without a match at the first code a sequence stands for the whole catalogue.
    only = PrefixTrie.from_table(identifier_table([[1, 0, 0], [1, 1, 1]], (2, 2, 2)))
    spelt = unconstrained_search(FakeGenerator(tables), requests(1), only, beam_width=1)
    assert items_of(spelt, only, k=2, repair=True).tolist() == [[1, 2]]
    assert items_of(spelt, only, k=2, repair=False).tolist() == [[0, 0]]
