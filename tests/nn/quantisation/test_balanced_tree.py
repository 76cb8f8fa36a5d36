"""Balanced tree: halves of equal size, one row for each leaf, near rows in the same part of the tree."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.nn.quantisation.balanced_tree import balanced_tree


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 70), distinct=st.integers(1, 70), seed=st.integers(0, 9))
def test_halves_differ_by_at_most_one_row_and_leaves_contain_one(count: int, distinct: int, seed: int) -> None:
    rows = torch.randn(distinct, 3, generator=torch.Generator().manual_seed(seed))
    tree = balanced_tree(rows[torch.arange(count) % distinct], seed=seed)
    assert tree.bits.shape == (count, max(1, (count - 1).bit_length()))
    assert len(torch.unique(tree.bits, dim=0)) == count
    for depth in range(tree.bits.shape[1]):
        prefixes, node = torch.unique(tree.bits[:, :depth], dim=0, return_inverse=True) if depth else ([0], 0)
        for index in range(len(prefixes)):
            sides = tree.bits[:, depth] if depth == 0 else tree.bits[node == index, depth]
            assert 0 <= len(sides) - 2 * int(sides.sum()) <= 1


def test_the_same_seed_builds_the_same_tree() -> None:
    rows = torch.randn(100, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(balanced_tree(rows, seed=3).bits, balanced_tree(rows, seed=3).bits)


def test_descending_rows_of_the_tree_reach_their_own_leaves() -> None:
    rows = torch.randn(300, 5, generator=torch.Generator().manual_seed(1))
    tree = balanced_tree(rows, seed=0)
    assert torch.equal(tree.descend(rows), tree.bits)
    # A vector very near a row nearly always reaches the same leaf; for the others the first splits are the same.
    assert float((tree.descend(rows + 1e-4) == tree.bits).double().mean()) > 0.99


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_clusters_are_separated_by_the_first_two_splits(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    clusters = torch.arange(64) % 4
    centres = torch.tensor([[0.0, 0.0], [30.0, 0.0], [0.0, 9.0], [30.0, 9.0]])
    tree = balanced_tree(centres[clusters] + torch.randn(64, 2, generator=generator), seed=seed)
    quarters = tree.bits[:, 0] * 2 + tree.bits[:, 1]
    assert len(torch.unique(quarters * 4 + clusters)) == 4
    # The wide gap between clusters is split first.
    assert len(torch.unique(tree.bits[:, 0] * 2 + clusters % 2)) == 2
