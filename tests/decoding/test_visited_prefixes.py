"""Prefixes that a beam visits in training, compared with plain enumeration."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_generator import FakeGenerator, identifier_table, requests

from nextitem.decoding.trie import PrefixTrie
from nextitem.decoding.visited_prefixes import listwise_loss, visited_prefixes

SIZES = (4, 3, 3)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 30), width=st.integers(1, 6), seed=st.integers(0, 999))
def test_visited_nodes_are_the_true_prefix_and_the_beams(count: int, width: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    codes = torch.stack([torch.randint(0, size, (count,), generator=random) for size in SIZES], dim=1)
    trie = PrefixTrie.from_table(identifier_table(codes.tolist(), SIZES))
    generator = FakeGenerator.random(SIZES, users=2, seed=seed)
    items = torch.randint(1, count + 1, (2,), generator=random)
    visited = visited_prefixes(generator, requests(2, excluded=[[int(items[0])], []]), trie, items, beam_width=width)
    for row in range(2):
        true = codes[items[row] - 1].tolist()
        beams = [()]
        for depth in range(1, len(SIZES) + 1):
            prefixes = {tuple(row_codes[:depth]) for row_codes in codes.tolist()}
            children = sorted(prefix for prefix in prefixes if prefix[:-1] in beams)
            beams = sorted(children, key=lambda prefix: -generator.log_prob(row + 1, list(prefix)))[:width]
            is_lost = tuple(true[:depth]) not in beams
            if is_lost:
                beams[-1] = tuple(true[:depth])
            nodes = visited[depth - 1][row].tolist()
            found_prefixes = [
                tuple(codes[trie.items_under(node)[0] - 1, :depth].tolist()) for node in nodes if node >= 0
            ]
            assert found_prefixes[0] == tuple(true[:depth])
            assert sorted(found_prefixes) == ([tuple(true[:depth])] if is_lost else sorted(beams))


def test_the_loss_is_a_softmax_over_the_visited_prefixes() -> None:
    codes = torch.tensor([[0, 0], [0, 1], [1, 0]])
    trie = PrefixTrie.from_table(identifier_table(codes.tolist(), (2, 2)))
    table = torch.cat([torch.full((1, 2), -1), codes])
    first = trie.advance(torch.zeros(2, dtype=torch.int64), torch.tensor([0, 1]))
    leaf = trie.advance(first[:1], torch.tensor([1]))
    weight = torch.tensor([0.3, 2.0], requires_grad=True)
    loss = listwise_loss(
        [first[None], torch.cat([leaf, leaf.new_tensor([-1])])[None]],
        trie,
        table,
        lambda prefixes: (prefixes * weight[: prefixes.shape[2]]).sum(2),
    )
    torch.testing.assert_close(loss, -torch.tensor([0.0, 0.3]).log_softmax(0)[0] / 2)  # the second target is alone
    loss.backward()
    assert weight.grad is not None
    assert float(weight.grad[0]) > 0
