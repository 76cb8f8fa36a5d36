"""Tests of Adam for rows: against torch's Adam, and with the state of rows that appear, change and are removed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nextitem.core.errors import UserError
from nextitem.core.roles import LossTerms
from nextitem.data.examples.content_rows import ContentBatch, ContentRows
from nextitem.nn.tables.growing import GrowingTable
from nextitem.nn.tables.hashed import HashedTable
from nextitem.nn.tables.kinds import GrowingRows, HashedRows
from nextitem.training.config import TrainingConfig
from nextitem.training.fit import fit
from nextitem.training.growing_tables import change_rows
from nextitem.training.optimizers import build_optimizer
from nextitem.training.row_adam import RowAdam


@pytest.mark.parametrize("is_decoupled", [True, False])
def test_rows_that_every_step_reads_change_as_in_torch(is_decoupled: bool) -> None:
    torch.manual_seed(0)
    sparse = nn.Embedding(5, 3, sparse=True)
    dense = nn.Embedding(5, 3)
    dense.load_state_dict(sparse.state_dict())
    settings: dict[str, Any] = {"lr": 0.1, "betas": (0.8, 0.95), "weight_decay": 0.2}
    reference = (torch.optim.AdamW if is_decoupled else torch.optim.Adam)(dense.parameters(), **settings)
    optimizer = RowAdam(sparse.parameters(), **settings, is_decoupled=is_decoupled)
    for _ in range(5):
        rows, weights = torch.cat([torch.randperm(5), torch.tensor([2, 2])]), torch.randn(7, 3)
        for table, each in ((sparse, optimizer), (dense, reference)):
            each.zero_grad()
            (table(rows) * weights).sum().backward()
            each.step()
    torch.testing.assert_close(sparse.weight, dense.weight)


def test_rows_without_a_gradient_and_their_moments_stay() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(4, 2, sparse=True)
    before = table.weight.detach().clone()
    optimizer = RowAdam(table.parameters(), lr=0.1, weight_decay=0.1)
    for rows in ([1], [1, 2], [1]):
        optimizer.zero_grad()
        table(torch.tensor(rows)).sum().backward()
        optimizer.step()
    assert torch.equal(table.weight[[0, 3]], before[[0, 3]])
    state = optimizer.state[table.weight]
    assert state["steps"].tolist() == [0, 3, 1, 0]
    # The first step of a late row is as long as that of an early one: the learning rate, after the decay.
    torch.testing.assert_close(table.weight[2].detach(), before[2] * 0.99 - 0.1)


def one_step(table: GrowingTable, optimizer: torch.optim.Optimizer, ids: list[int]) -> None:
    codes = torch.tensor(ids)
    optimizer.zero_grad()
    table.observe(codes)
    table(codes).square().sum().backward()
    optimizer.step()
    change_rows([table], optimizer)


@pytest.mark.parametrize("name", ["adamw", "adam", "adagrad", "sgd", "muon"])
def test_the_state_of_the_optimizer_follows_the_rows(name: str) -> None:
    torch.manual_seed(0)
    table = GrowingTable(GrowingRows(max_rows=2, block_rows=1, shared_rows=0, half_life=0.1), 3)
    model = nn.ModuleDict({"table": table, "line": nn.Linear(3, 3)})
    optimizer = build_optimizer(model, TrainingConfig.model_validate({"optimizer": name, "learning_rate": 0.1}))
    for ids in ([5], [5], [6, 5], [6, 5]):
        one_step(table, optimizer, ids)
    parts = getattr(optimizer, "parts", [optimizer])
    states = [value for part in parts for value in part.state.get(table.weight, {}).values()]
    row = int(table.rows_of(torch.tensor([5])))
    assert len(states) == {"adagrad": 1, "sgd": 0}.get(name, 3)
    assert all(len(value) == len(table.weight) and float(value[row].abs().sum()) > 0 for value in states)
    one_step(table, optimizer, [6])
    one_step(table, optimizer, [7])  # 7 gets the row of 5
    assert int(table.rows_of(torch.tensor([7]))) == row
    assert all(
        float(value[row].abs().sum()) == 0
        for value in [value for part in parts for value in part.state.get(table.weight, {}).values()]
    )


@pytest.mark.parametrize(
    "settings",
    [{"optimizer": "ftrl"}, {"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "sgd", "weight_decay": 0.1}],
)
def test_an_optimizer_that_cannot_leave_rows_alone_is_refused(settings: dict[str, object]) -> None:
    table = HashedTable(HashedRows(rows=3), 2)
    with pytest.raises(UserError, match="choose adamw"):
        build_optimizer(nn.ModuleDict({"table": table}), TrainingConfig.model_validate(settings))


class TableNet(nn.Module):
    """Network over the vectors of a growing table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = GrowingTable(GrowingRows(max_rows=5, block_rows=2, half_life=3.0, admit_after=2), 3)
        self.line = nn.Linear(3, 1)

    def training_loss(self, batch: ContentBatch) -> LossTerms:
        """Return the mean squared distance to the second column."""
        ids = batch.content[:, 0].long()
        self.table.observe(ids)
        return LossTerms((self.line(self.table(ids))[:, 0] - batch.content[:, 1]).square().mean())


def content() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.stack(
        [torch.randint(-6, 7, (60,), generator=generator).float(), torch.randn(60, generator=generator)], 1
    )


class InterruptedRows(ContentRows):
    """Rows whose fourth batch presses Ctrl-C."""

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[ContentBatch]:
        """Yield the batches, and interrupt the process before the fourth one of the second epoch."""
        for index, batch in enumerate(super().batches(batch_size, epoch=epoch, seed=seed, start=start), start):
            if (epoch, index) == (1, 3):
                signal.raise_signal(signal.SIGINT)
            yield batch


@pytest.mark.parametrize("clip", [None, 0.3])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path, clip: float | None) -> None:
    settings = TrainingConfig(learning_rate=0.05, max_epochs=4, batch_size=7, gradient_clip=clip)
    whole, cut, resumed = TableNet(), TableNet(), TableNet()
    fit(whole, ContentRows(content()), settings, seed=1, progress=False)
    result = fit(cut, InterruptedRows(content()), settings, seed=1, out=tmp_path, progress=False)
    assert (result.stop_reason, result.epochs) == ("interrupted", 1)
    assert len(cut.table.weight) != len(TableNet().table.weight)
    fit(resumed, ContentRows(content()), settings, seed=1, out=tmp_path, resume=True, progress=False)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert whole.table.num_ids == 5


def test_the_norm_of_sparse_and_dense_gradients_is_clipped() -> None:
    """Check that one step of plain gradient descent has the length rate * limit."""
    net, before = TableNet(), TableNet()
    settings = TrainingConfig(optimizer="sgd", learning_rate=1.0, max_epochs=1, batch_size=60, gradient_clip=1e-3)
    fit(net, ContentRows(content()), settings, seed=1, progress=False)
    rows = net.table.first_row
    changes = [net.line.weight - before.line.weight, net.line.bias - before.line.bias]
    changes.append(net.table.weight[:rows] - before.table.weight)
    assert torch.cat([change.detach().flatten() for change in changes]).norm().item() == pytest.approx(1e-3, rel=2e-3)
