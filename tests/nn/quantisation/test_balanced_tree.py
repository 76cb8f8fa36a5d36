"""The balanced tree: even everywhere, every row a leaf of its own, near rows near."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.nn.quantisation.balanced_tree import balanced_tree


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 70), distinct=st.integers(1, 70), seed=st.integers(0, 9))
def test_halves_differ_by_one_at_most_and_leaves_are_single(count: int, distinct: int, seed: int) -> None:
    rows = torch.randn(distinct, 3, generator=torch.Generator().manual_seed(seed))
    tree = balanced_tree(rows[torch.arange(count) % distinct], seed=seed)
    assert tree.bits.shape == (count, max(1, (count - 1).bit_length()))
    assert len(torch.unique(tree.bits, dim=0)) == count
    for depth in range(tree.bits.shape[1]):
        prefixes, node = torch.unique(tree.bits[:, :depth], dim=0, return_inverse=True) if depth else ([0], 0)
        for each in range(len(prefixes)):
            ones = tree.bits[:, depth] if depth == 0 else tree.bits[node == each, depth]
            assert 0 <= len(ones) - 2 * int(ones.sum()) <= 1


def test_the_same_seed_gives_the_same_tree() -> None:
    rows = torch.randn(100, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(balanced_tree(rows, seed=3).bits, balanced_tree(rows, seed=3).bits)


def test_a_row_that_walks_down_finds_its_own_leaf() -> None:
    rows = torch.randn(300, 5, generator=torch.Generator().manual_seed(1))
    tree = balanced_tree(rows, seed=0)
    assert torch.equal(tree.descend(rows), tree.bits)
    # A little aside of a row is nearly always the same leaf; for the others the first splits are the same.
    assert float((tree.descend(rows + 1e-4) == tree.bits).double().mean()) > 0.99


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_clusters_are_split_from_each_other(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    truth = torch.arange(64) % 4
    centres = torch.tensor([[0.0, 0.0], [30.0, 0.0], [0.0, 9.0], [30.0, 9.0]])
    tree = balanced_tree(centres[truth] + torch.randn(64, 2, generator=draw), seed=seed)
    found = tree.bits[:, 0] * 2 + tree.bits[:, 1]
    assert len(torch.unique(found * 4 + truth)) == 4
    # The wide gap comes first.
    assert len(torch.unique(tree.bits[:, 0] * 2 + truth % 2)) == 2
