"""Sampled logits, compared with their reference, forward and backward, and with columns of the full product."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nextitem.ops import sampled_logits as module
from nextitem.ops.sampled_logits import sampled_logits, sampled_logits_reference

N, D = 9, 4


def inputs(positions: int, negatives: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(positions)
    hidden = torch.randn(positions, D, generator=generator, dtype=torch.float64, requires_grad=True)
    table = torch.randn(N + 1, D, generator=generator, dtype=torch.float64, requires_grad=True)
    return hidden, table, torch.randint(1, N + 1, (positions, negatives), generator=generator)


@pytest.mark.parametrize("at_once", [1, 3 * D * 5, 2**20])
@pytest.mark.parametrize(("positions", "negatives"), [(0, 5), (1, 1), (7, 5), (30, 5), (4, 0)])
def test_sampled_logits_equal_the_reference(
    positions: int, negatives: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", at_once)
    results = []
    for function in (sampled_logits, sampled_logits_reference):
        hidden, table, items = inputs(positions, negatives)
        logits = function(hidden, table, items)
        logits.sin().sum().backward()
        results.append((logits.detach(), hidden.grad, table.grad))
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right)


def test_sampled_logits_are_columns_of_the_product_with_the_table() -> None:
    hidden, table, items = inputs(7, 5)
    torch.testing.assert_close(sampled_logits(hidden, table, items), (hidden @ table.T).gather(1, items))


def test_gradients_equal_finite_differences() -> None:
    hidden, table, items = inputs(6, 3)
    assert torch.autograd.gradcheck(lambda h, w: sampled_logits(h, w, items), (hidden, table))


def test_gathered_vectors_are_not_saved_for_the_backward_pass() -> None:
    hidden, table, items = inputs(50, 40)
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sampled_logits(hidden, table, items)
    assert max(sizes) == 50 * 40  # the item numbers


def test_bfloat16_hidden_states_work_with_a_float32_table() -> None:
    hidden, table, items = inputs(6, 3)
    logits = sampled_logits(hidden.detach().bfloat16().requires_grad_(), table.detach().float(), items)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.double(), sampled_logits_reference(hidden, table, items), rtol=0.05, atol=0.05)
