"""Dropout by random bytes: rate, scale and repeatability."""

from __future__ import annotations

import pytest
import torch

from nextitem.nn.byte_dropout import ByteDropout


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5])
def test_the_rate_and_the_expected_value_are_those_of_dropout(rate: float) -> None:
    torch.manual_seed(0)
    out = ByteDropout(rate)(torch.ones(999, 101))
    dropped = float((out == 0).float().mean())
    assert dropped == pytest.approx(rate, abs=0.006)  # the rate is a multiple of 1 / 256
    assert float(out.mean()) == pytest.approx(1, abs=0.006)
    assert len(out.unique()) == 2


def test_every_byte_of_a_random_number_decides() -> None:
    torch.manual_seed(0)
    is_dropped = ByteDropout(0.25)(torch.ones(4000, 8)) == 0
    torch.testing.assert_close(is_dropped.float().mean(0), torch.full((8,), 0.25), atol=0.04, rtol=0)
    assert abs(float(torch.corrcoef(is_dropped.T.float()).fill_diagonal_(0).abs().max())) < 0.06


def test_gradients_flow_through_the_entries_that_remain() -> None:
    values = torch.ones(50, requires_grad=True)
    out = ByteDropout(0.5)(values)
    out.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, out.detach())


def test_evaluation_and_a_rate_of_0_change_nothing_and_a_seed_repeats() -> None:
    values = torch.randn(3, 5)
    assert ByteDropout(0.5).eval()(values) is values
    assert ByteDropout(0.0)(values) is values
    results = []
    for _ in range(2):
        torch.manual_seed(4)
        results.append(ByteDropout(0.5)(values))
    assert torch.equal(*results)
