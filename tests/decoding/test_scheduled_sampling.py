"""Scheduled sampling: prefixes that are fed stay legal, and only targets that some item has are kept."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_generator import identifier_table

from nextitem.decoding.scheduled_sampling import sampled_prefixes
from nextitem.decoding.trie import PrefixTrie

ROWS = [[0, 0, 0], [0, 1, 1], [1, 0, 1], [2, 1, 0]]
TRIE = PrefixTrie.from_table(identifier_table(ROWS, (3, 2, 2)))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=12),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_every_prefix_is_legal_and_some_item_has_each_kept_target(
    rows: list[tuple[int, ...]], share: float, seed: int
) -> None:
    trie = PrefixTrie.from_table(identifier_table([list(row) for row in rows], (4, 4, 4)))
    codes = torch.tensor(rows).repeat(5, 1)
    torch.manual_seed(seed)
    fed_codes, is_target = sampled_prefixes([torch.randn(len(codes), 4) for _ in range(3)], codes, trie, share=share)
    prefixes = {row[:length] for row in rows for length in range(4)}
    for prefix, is_kept, true in zip(fed_codes.tolist(), is_target.tolist(), codes.tolist(), strict=True):
        assert all(tuple(prefix[:length]) in prefixes for length in range(3))
        for level in range(3):
            expected = all((*prefix[:depth], true[depth]) in prefixes for depth in range(level + 1))
            assert is_kept[level] == expected


def test_a_share_of_zero_feeds_the_true_codes() -> None:
    codes = torch.tensor(ROWS)
    fed_codes, is_target = sampled_prefixes([torch.randn(4, size) for size in (3, 2, 2)], codes, TRIE, share=0.0)
    assert torch.equal(fed_codes, codes)
    assert bool(is_target.all())


def test_sampled_codes_follow_the_logits_among_legal_codes() -> None:
    """The target is item 1 (0 0 0). The model is sure of first code 2, below which no item has second code 0."""
    logits = [torch.tensor([[0.0, 0.0, 50.0]]), torch.zeros(1, 2), torch.zeros(1, 2)]
    fed_codes, is_target = sampled_prefixes(logits, torch.tensor([[0, 0, 0]]), TRIE, share=1.0)
    assert fed_codes.tolist() == [[2, 1, 0]]
    assert is_target.tolist() == [[True, False, False]]
    # The model is sure of 1 1 0, which no item has: only 1 0 is legal, and the true second code is valid there.
    logits = [torch.tensor([[0.0, 50.0, 0.0]]), torch.tensor([[0.0, 50.0]]), torch.zeros(1, 2)]
    fed_codes, is_target = sampled_prefixes(logits, torch.tensor([[0, 0, 0]]), TRIE, share=1.0)
    assert fed_codes.tolist() == [[1, 0, 0]]
    assert is_target.tolist() == [[True, True, False]]
