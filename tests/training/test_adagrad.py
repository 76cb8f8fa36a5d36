"""Tests of Adagrad with momentum: against values computed by hand, and sparse against dense gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nextitem.training.adagrad import Adagrad
from nextitem.training.config import TrainingConfig
from nextitem.training.optimizers import build_optimizer


def test_two_steps_equal_values_computed_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = Adagrad([weight], lr=0.1, momentum=0.5)
    weights = []
    for gradient in (3.0, 4.0):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        weights.append(weight.item())
    first = -0.1 * 3 / (9 + 1e-6) ** 0.5  # the accumulator is 0 before: the first step has length lr
    second = 0.5 * first - 0.1 * 4 / (25 + 1e-6) ** 0.5
    assert weights == pytest.approx([1 + first, 1 + first + second], abs=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.4])
def test_sparse_steps_equal_dense_ones_if_every_row_is_read(momentum: float) -> None:
    torch.manual_seed(0)
    tables = [nn.Embedding(5, 3, sparse=sparse) for sparse in (True, False)]
    tables[1].load_state_dict(tables[0].state_dict())
    optimizers = [Adagrad(table.parameters(), lr=0.1, momentum=momentum) for table in tables]
    for step in range(4):
        rows = torch.cat([torch.randperm(5), torch.tensor([step, step])])  # some rows twice
        weights = torch.randn(7, 3)
        for table, optimizer in zip(tables, optimizers, strict=True):
            optimizer.zero_grad()
            (table(rows) * weights).sum().backward()
            optimizer.step()
        assert tables[0].weight.grad is not None
        assert tables[0].weight.grad.is_sparse
        torch.testing.assert_close(tables[0].weight, tables[1].weight)


def test_rows_that_are_not_read_and_their_momentum_stay_unchanged() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = Adagrad(table.parameters(), lr=0.1, momentum=0.9)
    table(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    state = optimizer.state[table.weight]
    before = [table.weight.detach().clone(), state["sum"].clone(), state["momentum"].clone()]
    optimizer.zero_grad()
    table(torch.tensor([2])).sum().backward()
    optimizer.step()
    for former, value in zip(before, (table.weight.detach(), state["sum"], state["momentum"]), strict=True):
        is_changed = (former != value).any(1)
        assert is_changed.tolist() == [False, False, True, False]


def test_only_adagrad_gets_sparse_gradients() -> None:
    for name, sparse in (("adagrad", True), ("adamw", False)):
        table = nn.Embedding(4, 2, sparse=True)
        optimizer = build_optimizer(table, TrainingConfig(optimizer=name, momentum=0.3))
        table(torch.tensor([1, 2])).sum().backward()
        assert table.weight.grad is not None
        assert table.weight.grad.is_sparse == sparse
        optimizer.step()
