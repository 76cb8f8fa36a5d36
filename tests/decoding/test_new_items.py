"""Lists with a limited share of new items."""

from __future__ import annotations

import pytest
import torch
from support.fake_generator import FakeGenerator, identifier_table, requests

from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.new_items import search_with_new_items
from nextitem.decoding.trie import PrefixTrie

GRID = [[a, b] for a in range(4) for b in range(4)]
TRIE = PrefixTrie.from_table(identifier_table(GRID, (4, 4)))
IS_NEW = torch.arange(17) % 3 == 1  # items 1, 4, 7, 10, 13, 16


@pytest.mark.parametrize(("share", "max_new"), [(0.0, 0), (0.1, 0), (0.2, 1), (0.5, 2), (1.0, 5)])
def test_the_list_is_the_best_with_at_most_the_share_of_new_items(share: float, max_new: int) -> None:
    generator = FakeGenerator.random((4, 4), users=6, seed=1)
    batch = requests(6, excluded=[[2], [4], [], [], [], []])
    answer = search_with_new_items(generator, batch, TRIE, new=IS_NEW, share=share, k=5, beam_width=16)
    unlimited = beam_search(generator, batch, TRIE, k=16, beam_width=16)
    for row in range(6):
        expected: list[int] = []
        for item in unlimited.item_ids[row].tolist():
            if (
                item
                and len(expected) < 5
                and (not IS_NEW[item] or sum(bool(IS_NEW[other]) for other in expected) < max_new)
            ):
                expected.append(item)
        assert answer.item_ids[row].tolist() == expected


@pytest.mark.parametrize(("share", "max_new"), [(0.2, 1), (0.5, 2), (1.0, 5)])
def test_reserved_slots_go_to_the_best_new_items(share: float, max_new: int) -> None:
    generator = FakeGenerator.random((4, 4), users=6, seed=1)
    batch = requests(6, excluded=[[2], [1, 4, 7, 10, 13], [], [], [], []])  # the second request has one new item left
    answer = search_with_new_items(generator, batch, TRIE, new=IS_NEW, share=share, k=5, beam_width=16, reserved=True)
    unlimited = beam_search(generator, batch, TRIE, k=16, beam_width=16)
    for row in range(6):
        order = [item for item in unlimited.item_ids[row].tolist() if item]
        new_items = [item for item in order if IS_NEW[item]][:max_new]
        selected = {*new_items, *[item for item in order if not IS_NEW[item]][: 5 - len(new_items)]}
        assert answer.item_ids[row].tolist() == [item for item in order if item in selected]


def test_an_allow_list_applies_to_new_and_other_items() -> None:
    generator = FakeGenerator.random((4, 4), users=1, seed=1)
    allowed = torch.isin(torch.arange(17), torch.tensor([1, 2, 4]))[None]
    answer = search_with_new_items(
        generator, requests(1, allowed=allowed), TRIE, new=IS_NEW, share=0.5, k=4, beam_width=4
    )
    assert sorted(answer.item_ids[0].tolist()) == [0, 1, 2, 4]
    allowed = torch.isin(torch.arange(17), torch.tensor([1]))[None]
    answer = search_with_new_items(
        generator, requests(1, allowed=allowed), TRIE, new=IS_NEW, share=0.5, k=4, beam_width=4
    )
    assert answer.item_ids[0].tolist() == [1, 0, 0, 0]
