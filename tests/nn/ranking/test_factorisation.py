"""Second-order factorisation machine: the linear-time form equals the loop over pairs."""

from __future__ import annotations

import pytest
import torch

from nextitem.nn.ranking.factorisation import pairwise_interactions


@pytest.mark.parametrize("fields", [1, 2, 7])
def test_value_and_gradient_equal_a_loop_over_pairs(fields: int) -> None:
    torch.manual_seed(0)
    vectors = torch.randn(5, fields, 4, dtype=torch.float64, requires_grad=True)
    pairs = [(vectors[:, f] * vectors[:, g]).sum(1) for f in range(fields) for g in range(f + 1, fields)]
    expected = torch.stack([*pairs, torch.zeros(5, dtype=torch.float64)]).sum(0)
    interactions = pairwise_interactions(vectors)
    torch.testing.assert_close(interactions, expected)
    if pairs:
        weights = torch.randn(5, dtype=torch.float64)
        gradients = [torch.autograd.grad((value * weights).sum(), vectors)[0] for value in (interactions, expected)]
        torch.testing.assert_close(*gradients)


def test_interactions_equal_hand_computed_ones() -> None:
    vectors = torch.tensor([[[1.0, 2.0], [3.0, -1.0], [0.0, 4.0]]])
    assert pairwise_interactions(vectors).tolist() == [(3 - 2) + 8 + -4]
