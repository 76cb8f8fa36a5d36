"""Scheduled sampling: prefixes stay legal, targets stay meaningful."""

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
def test_every_prefix_is_legal_and_a_kept_target_has_an_item(
    rows: list[tuple[int, ...]], share: float, seed: int
) -> None:
    trie = PrefixTrie.from_table(identifier_table([list(row) for row in rows], (4, 4, 4)))
    codes = torch.tensor(rows).repeat(5, 1)
    torch.manual_seed(seed)
    fed, real = sampled_prefixes([torch.randn(len(codes), 4) for _ in range(3)], codes, trie, share=share)
    prefixes = {row[:length] for row in rows for length in range(4)}
    for given_codes, kept, true in zip(fed.tolist(), real.tolist(), codes.tolist(), strict=True):
        assert all(tuple(given_codes[:length]) in prefixes for length in range(3))
        for level in range(3):
            expected = all((*given_codes[:at], true[at]) in prefixes for at in range(level + 1))
            assert kept[level] == expected


def test_a_share_of_nothing_feeds_the_true_codes() -> None:
    codes = torch.tensor(ROWS)
    fed, real = sampled_prefixes([torch.randn(4, size) for size in (3, 2, 2)], codes, TRIE, share=0.0)
    assert torch.equal(fed, codes)
    assert bool(real.all())


def test_the_model_s_own_codes_are_drawn_by_its_logits_among_legal_ones() -> None:
    """Item 1 (0 0 0); the model is sure of first code 2: below it, its second code 0 is nobody's."""
    logits = [torch.tensor([[0.0, 0.0, 50.0]]), torch.zeros(1, 2), torch.zeros(1, 2)]
    fed, real = sampled_prefixes(logits, torch.tensor([[0, 0, 0]]), TRIE, share=1.0)
    assert fed.tolist() == [[2, 1, 0]]
    assert real.tolist() == [[True, False, False]]
    # Sure of 1 1 0, which is nobody's: only 1 0 is legal, and the true second code is right there.
    logits = [torch.tensor([[0.0, 50.0, 0.0]]), torch.tensor([[0.0, 50.0]]), torch.zeros(1, 2)]
    fed, real = sampled_prefixes(logits, torch.tensor([[0, 0, 0]]), TRIE, share=1.0)
    assert fed.tolist() == [[1, 0, 0]]
    assert real.tolist() == [[True, True, False]]
