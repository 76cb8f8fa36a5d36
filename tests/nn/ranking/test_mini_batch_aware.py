"""Mini-batch-aware L2: the gradient of the term equals the update of the paper."""

from __future__ import annotations

import torch
from torch import nn

from nextitem.nn.ranking.mini_batch_aware import mini_batch_aware_l2


def test_gradient_step_equals_the_update_of_the_paper() -> None:
    torch.manual_seed(0)
    table = nn.Parameter(torch.randn(5, 3))
    before = table.detach().clone()
    counts = torch.tensor([0.0, 4.0, 1.0, 2.0, 9.0])
    row_ids = torch.tensor([[1, 3], [3, 0]])  # a repeated row counts once
    weights = torch.randn(2, 2, 3)
    loss = (table[row_ids] * weights).sum() + 0.1 * mini_batch_aware_l2(table.__getitem__, row_ids, counts)
    loss.backward()
    torch.optim.SGD([table], lr=0.5).step()
    gradient = torch.zeros(5, 3).index_add_(0, row_ids.flatten(), weights.view(4, 3))
    for j in range(5):
        alpha = float(j in (0, 1, 3))
        expected = before[j] - 0.5 * (gradient[j] + 0.1 * alpha / counts[j].clamp(min=1) * before[j])
        torch.testing.assert_close(table[j].detach(), expected)


def test_every_row_is_regularised_equally_over_an_epoch_of_single_examples() -> None:
    table = torch.ones(2, 1, requires_grad=True)
    counts = torch.tensor([8.0, 2.0])
    batches = [torch.tensor([0, 1])] * 2 + [torch.tensor([0])] * 6
    torch.stack([mini_batch_aware_l2(table.__getitem__, batch, counts) for batch in batches]).sum().backward()
    assert table.grad is not None
    torch.testing.assert_close(table.grad, torch.ones(2, 1))
