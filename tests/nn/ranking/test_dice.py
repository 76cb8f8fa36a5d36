"""Dice: its formula, and that a row's answer is its own."""

from __future__ import annotations

import pytest
import torch

from nextitem.nn.ranking.dice import Dice


def trained() -> Dice:
    torch.manual_seed(0)
    dice = Dice(3)
    for _ in range(50):
        dice(2 * torch.randn(64, 3) + 1)
    with torch.no_grad():
        dice.alpha.copy_(torch.tensor([0.0, 0.3, 1.0]))
    return dice


def test_it_is_its_formula_over_the_batch_while_training() -> None:
    dice, inputs = trained(), torch.randn(16, 3)
    mean, variance = inputs.mean(0), inputs.var(0, correction=0)
    share = 1 / (1 + torch.exp(-(inputs - mean) / (variance + 1e-8).sqrt()))
    torch.testing.assert_close(dice(inputs), share * inputs + (1 - share) * dice.alpha * inputs)


def test_afterwards_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    dice, inputs = trained().eval(), torch.randn(16, 3)
    together = dice(inputs)
    torch.testing.assert_close(torch.cat([dice(inputs[:5]), dice(inputs[5:])]), together, rtol=0, atol=0)
    torch.testing.assert_close(torch.cat([dice(row[None]) for row in inputs]), together)
    beside = dice(torch.cat([inputs[:1], 1000 * torch.ones(9, 3)]))
    torch.testing.assert_close(beside[0], together[0])
    # Not so while training: what stands beside a row tells of it.
    dice.train()
    assert not torch.allclose(dice(torch.cat([inputs[:1], torch.ones(9, 3)]))[0], dice(inputs)[0])


def test_alpha_1_is_the_identity() -> None:
    dice, inputs = trained().eval(), torch.randn(6, 3)
    torch.testing.assert_close(dice(inputs)[:, 2], inputs[:, 2])


@pytest.mark.parametrize("rows", [0, 1])
def test_a_training_batch_without_a_variance(rows: int) -> None:
    dice = trained()
    assert dice.norm.running_mean is not None
    before = dice.norm.running_mean.clone()
    found = dice(torch.ones(rows, 3))
    assert torch.equal(found, dice.eval()(torch.ones(rows, 3)))
    assert torch.equal(dice.norm.running_mean, before)
