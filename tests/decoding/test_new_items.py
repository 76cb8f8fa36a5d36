"""Lists with a stated share of new items."""

from __future__ import annotations

import pytest
import torch
from support.fake_generator import FakeGenerator, identifier_table, requests

from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.new_items import search_with_new_items
from nextitem.decoding.trie import PrefixTrie

GRID = [[a, b] for a in range(4) for b in range(4)]
TRIE = PrefixTrie.from_table(identifier_table(GRID, (4, 4)))
NEW = torch.arange(17) % 3 == 1  # items 1, 4, 7, 10, 13, 16


@pytest.mark.parametrize(("share", "most"), [(0.0, 0), (0.1, 0), (0.2, 1), (0.5, 2), (1.0, 5)])
def test_at_most_the_share_is_new_and_the_list_is_the_best_such(share: float, most: int) -> None:
    fake = FakeGenerator.random((4, 4), users=6, seed=1)
    batch = requests(6, excluded=[[2], [4], [], [], [], []])
    found = search_with_new_items(fake, batch, TRIE, new=NEW, share=share, k=5, beam_width=16)
    everything = beam_search(fake, batch, TRIE, k=16, beam_width=16)
    for row in range(6):
        expected: list[int] = []
        for item in everything.item_ids[row].tolist():
            if item and len(expected) < 5 and (not NEW[item] or sum(bool(NEW[each]) for each in expected) < most):
                expected.append(item)
        assert found.item_ids[row].tolist() == expected


@pytest.mark.parametrize(("share", "most"), [(0.2, 1), (0.5, 2), (1.0, 5)])
def test_reserved_places_go_to_the_best_new_items(share: float, most: int) -> None:
    fake = FakeGenerator.random((4, 4), users=6, seed=1)
    batch = requests(6, excluded=[[2], [1, 4, 7, 10, 13], [], [], [], []])  # the second has one new item left
    found = search_with_new_items(fake, batch, TRIE, new=NEW, share=share, k=5, beam_width=16, reserved=True)
    everything = beam_search(fake, batch, TRIE, k=16, beam_width=16)
    for row in range(6):
        order = [item for item in everything.item_ids[row].tolist() if item]
        new = [item for item in order if NEW[item]][:most]
        chosen = {*new, *[item for item in order if not NEW[item]][: 5 - len(new)]}
        assert found.item_ids[row].tolist() == [item for item in order if item in chosen]


def test_an_allow_list_holds_all_the_same() -> None:
    fake = FakeGenerator.random((4, 4), users=1, seed=1)
    allowed = torch.isin(torch.arange(17), torch.tensor([1, 2, 4]))[None]
    found = search_with_new_items(fake, requests(1, allowed=allowed), TRIE, new=NEW, share=0.5, k=4, beam_width=4)
    assert sorted(found.item_ids[0].tolist()) == [0, 1, 2, 4]
    only = torch.isin(torch.arange(17), torch.tensor([1]))[None]
    found = search_with_new_items(fake, requests(1, allowed=only), TRIE, new=NEW, share=0.5, k=4, beam_width=4)
    assert found.item_ids[0].tolist() == [1, 0, 0, 0]
