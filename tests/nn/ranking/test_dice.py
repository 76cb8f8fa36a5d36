"""Dice: equals its formula, and in evaluation the output of a row does not depend on other rows."""

from __future__ import annotations

import pytest
import torch

from nextitem.nn.ranking.dice import Dice


def trained_dice() -> Dice:
    torch.manual_seed(0)
    dice = Dice(3)
    for _ in range(50):
        dice(2 * torch.randn(64, 3) + 1)
    with torch.no_grad():
        dice.alpha.copy_(torch.tensor([0.0, 0.3, 1.0]))
    return dice


def test_training_output_equals_the_formula_over_the_batch() -> None:
    dice, inputs = trained_dice(), torch.randn(16, 3)
    mean, variance = inputs.mean(0), inputs.var(0, correction=0)
    gate = 1 / (1 + torch.exp(-(inputs - mean) / (variance + 1e-8).sqrt()))
    torch.testing.assert_close(dice(inputs), gate * inputs + (1 - gate) * dice.alpha * inputs)


def test_evaluation_output_of_a_row_does_not_depend_on_other_rows() -> None:
    dice, inputs = trained_dice().eval(), torch.randn(16, 3)
    whole_batch = dice(inputs)
    torch.testing.assert_close(torch.cat([dice(inputs[:5]), dice(inputs[5:])]), whole_batch, rtol=0, atol=0)
    torch.testing.assert_close(torch.cat([dice(row[None]) for row in inputs]), whole_batch)
    other_batch = dice(torch.cat([inputs[:1], 1000 * torch.ones(9, 3)]))
    torch.testing.assert_close(other_batch[0], whole_batch[0])
    # In training it does: the output of a row depends on the other rows.
    dice.train()
    assert not torch.allclose(dice(torch.cat([inputs[:1], torch.ones(9, 3)]))[0], dice(inputs)[0])


def test_alpha_1_is_the_identity() -> None:
    dice, inputs = trained_dice().eval(), torch.randn(6, 3)
    torch.testing.assert_close(dice(inputs)[:, 2], inputs[:, 2])


@pytest.mark.parametrize("rows", [0, 1])
def test_training_batch_without_a_variance_uses_the_running_statistics(rows: int) -> None:
    dice = trained_dice()
    assert dice.norm.running_mean is not None
    mean_before = dice.norm.running_mean.clone()
    output = dice(torch.ones(rows, 3))
    assert torch.equal(output, dice.eval()(torch.ones(rows, 3)))
    assert torch.equal(dice.norm.running_mean, mean_before)
