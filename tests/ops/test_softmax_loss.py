"""Blocked cross-entropy, compared with the plain cross-entropy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.ops import softmax_loss as module
from nextitem.ops.softmax_loss import softmax_loss, softmax_loss_reference


def case(positions: int, items: int, width: int = 5, *, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(positions, width, generator=generator, dtype=torch.float64).requires_grad_()
    table = torch.randn(items + 1, width, generator=generator, dtype=torch.float64).requires_grad_()
    return hidden, table, torch.randint(1, items + 1, (positions,), generator=generator)


@settings(max_examples=100, deadline=None)
@given(
    positions=st.integers(1, 40),
    items=st.integers(1, 60),
    block=st.integers(1, 500),
    rows=st.integers(1, 50),
    further=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_softmax_loss_equals_the_reference(
    positions: int, items: int, block: int, rows: int, further: int, seed: int
) -> None:
    """Covers value and gradients, in blocks of positions (small catalogue) and of items, with several targets, too."""
    hidden, table, targets = case(positions, items, seed=seed)
    weights = None
    if further:
        generator = torch.Generator().manual_seed(seed)
        targets = torch.randint(1, items + 1, (positions, 1 + further), generator=generator)
        weights = torch.rand((positions, 1 + further), generator=generator, dtype=torch.float64).round(decimals=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        patch.setattr(module, "ROWS", rows)
        loss = softmax_loss(hidden, table, targets, weights)
        loss_without_gradients = softmax_loss(hidden.detach(), table.detach(), targets, weights)
        gradients = torch.autograd.grad(3 * loss, [hidden, table])
    plain = softmax_loss_reference(hidden, table, targets, weights)
    expected = torch.autograd.grad(3 * plain, [hidden, table])
    torch.testing.assert_close(loss, plain)
    assert torch.equal(loss_without_gradients, loss.detach())
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)
    assert not bool(gradients[1][0].any())


def test_blocks_are_of_positions_or_of_items_by_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for name in ("_blocks_of_positions", "_blocks_of_items"):
        way = getattr(module, name)

        def spy(*arguments: object, name: str = name, way: Callable[..., object] = way) -> object:
            calls.append(name)
            return way(*arguments)

        monkeypatch.setattr(module, name, spy)
    softmax_loss(*case(30, 50))
    monkeypatch.setattr(module, "BLOCK", 100)
    softmax_loss(*case(30, 50))
    assert calls == ["_blocks_of_positions", "_blocks_of_items"]


def test_the_loss_of_several_targets_is_the_weighted_sum_of_their_losses() -> None:
    hidden, table, targets = case(6, 9)
    later = (targets + 3) % 9 + 1
    weights = torch.tensor([[1.0, 0.25]], dtype=torch.float64).repeat(6, 1)
    together = softmax_loss(hidden, table, torch.stack([targets, later], 1), weights)
    apart = softmax_loss(hidden, table, targets) + 0.25 * softmax_loss(hidden, table, later)
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize("block", [40, 2**22])
def test_gradients_equal_finite_differences(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    hidden, table, targets = case(4, 17, 3)
    assert torch.autograd.gradcheck(lambda h, w: softmax_loss(h, w, targets), (hidden, table))


@pytest.mark.parametrize("block", [100, 2**22])
def test_huge_logits_do_not_overflow(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    hidden, table, targets = (part.float() if part.is_floating_point() else part for part in case(30, 50))
    loss = softmax_loss(1000 * hidden, table, targets)
    torch.testing.assert_close(loss, softmax_loss_reference(1000 * hidden, table, targets))


def test_softmax_loss_is_close_under_mixed_precision() -> None:
    hidden, table, targets = (part.float().detach() if part.is_floating_point() else part for part in case(30, 50))
    table.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = softmax_loss(hidden.bfloat16(), table, targets)
    loss.backward()
    assert table.grad is not None
    assert table.grad.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(
        float(softmax_loss_reference(hidden, table, targets).detach()), rel=0.02
    )


def test_a_batch_without_positions_raises_an_error() -> None:
    with pytest.raises(ValueError, match="at least one position"):
        softmax_loss(torch.zeros(0, 3), torch.zeros(5, 3), torch.zeros(0, dtype=torch.int64))


@pytest.mark.slow
def test_memory_does_not_grow_with_positions_times_items() -> None:
    """With a million items of width 64 and 2,000 positions, all logits alone would take 7.5 GiB."""
    code = """
import torch
from pathlib import Path
from nextitem.ops.softmax_loss import softmax_loss
hidden = torch.randn(2000, 64, requires_grad=True)
table = torch.randn(1_000_001, 64, requires_grad=True)
def kib(name):  # getrusage would return the peak of the parent process
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])
before = kib("VmRSS")
softmax_loss(hidden, table, torch.randint(1, 1_000_001, (2000,))).backward()
print((kib("VmHWM") - before) / 2**20)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.2 < float(process.stdout) < 1.2  # GiB; 1.2 is about four times the gradient of the table
