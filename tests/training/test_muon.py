"""Tests of Muon: steps against plain Newton-Schulz iterations and torch, who trains what, resuming, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nextitem.core.config import parse
from nextitem.core.errors import UserError
from nextitem.core.roles import LossTerms
from nextitem.data.examples.content_rows import ContentBatch, ContentRows
from nextitem.training.config import TrainingConfig
from nextitem.training.fit import fit
from nextitem.training.muon import Muon, Scale
from nextitem.training.optimizers import build_optimizer


class Net(nn.Module):
    """Network with a table of vectors, two matrices, biases and a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.table = nn.Embedding(5, 8)
        self.first = nn.Linear(12, 16)
        self.norm = nn.LayerNorm(16)
        self.last = nn.Linear(16, 1, bias=False)

    def training_loss(self, batch: ContentBatch) -> LossTerms:
        inputs, targets = batch.content[:, :4], batch.content[:, 4:]
        buckets = (inputs[:, 0] * 2 + 2).long()
        hidden = torch.relu(self.norm(self.first(torch.cat([inputs, self.table(buckets)], dim=1))))
        return LossTerms((self.last(hidden) - targets).square().mean())


def line() -> ContentRows:
    """Return examples of y = 3x - 1: four times x, then y."""
    x = torch.linspace(-1, 1, 64)[:, None]
    return ContentRows(torch.cat([x.repeat(1, 4), 3 * x - 1], dim=1))


def run(net: Net, config: TrainingConfig, **arguments: Any) -> None:
    fit(net, line(), config, progress=False, **arguments)


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def settings(**fields: object) -> TrainingConfig:
    values = {"optimizer": "muon", "max_epochs": 6, "batch_size": 8, "learning_rate": 0.01, "patience": None, **fields}
    return parse(TrainingConfig, values, where="test")


def orthogonalised(matrix: Tensor, *, steps: int = 5) -> Tensor:
    """Return the update of Keller Jordan's post, in float64: x <- a x + b (x x') x + c (x x')^2 x."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = matrix.double() / matrix.double().norm()
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + b * gram @ x + c * gram @ gram @ x
    return x


@pytest.mark.parametrize("scale", ["as-adamw", "as-published"])
@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_of_a_matrix_equal_the_formula(shape: tuple[int, int], scale: str, nesterov: bool) -> None:
    layer, generator = nn.Linear(shape[1], shape[0], bias=False), torch.Generator().manual_seed(0)
    muon = {"momentum": 0.8, "scale": scale, "nesterov": nesterov}
    optimizer = build_optimizer(layer, settings(learning_rate=0.1, weight_decay=0.5, muon=muon))
    expected, momentum = layer.weight.detach().double(), torch.zeros(shape, dtype=torch.float64)
    factor = 0.2 * max(shape) ** 0.5 if scale == "as-adamw" else max(1, shape[0] / shape[1]) ** 0.5
    for _ in range(3):
        gradient = torch.randn(shape, generator=generator)
        layer.weight.grad = gradient
        optimizer.step()
        momentum = 0.8 * momentum + 0.2 * gradient
        update = 0.8 * momentum + 0.2 * gradient if nesterov else momentum
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * factor * orthogonalised(update)
    torch.testing.assert_close(layer.weight.detach().double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
@pytest.mark.parametrize("scale", ["as-adamw", "as-published"])
@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_steps_equal_those_of_torch(shape: tuple[int, int], scale: Scale) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    adjustment = {"as-adamw": "match_rms_adamw", "as-published": "original"}[scale]
    optimizers = [
        Muon([ours], lr=0.1, weight_decay=0.5, momentum=0.8, scale=scale),
        torch.optim.Muon([theirs], lr=0.1, weight_decay=0.5, momentum=0.8, adjust_lr_fn=adjustment),
    ]
    for _ in range(3):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    # torch iterates in bfloat16, with 8 bits.
    moved = (ours - torch.ones(shape) * (1 - 0.05) ** 3).norm()
    assert bool((ours - theirs).norm() < 0.03 * moved)


def test_a_matrix_without_a_gradient_or_of_zeros_keeps_its_weights() -> None:
    weights = [nn.Parameter(torch.ones(3, 2)) for _ in range(2)]
    weights[0].grad = torch.zeros(3, 2)
    Muon(weights, lr=0.1).step()
    assert all(torch.equal(weight, torch.ones(3, 2)) for weight in weights)


def test_an_update_changes_all_directions_alike() -> None:
    layer = nn.Linear(16, 8, bias=False)
    nn.init.zeros_(layer.weight)
    optimizer = build_optimizer(layer, settings(learning_rate=1.0, muon={"scale": "as-published"}))
    layer.weight.grad = torch.diag(torch.tensor([1, 1, 1, 1, 0.5, 0.5, 0.2, 0.1])) @ torch.eye(8, 16)
    optimizer.step()
    values = torch.linalg.svdvals(layer.weight.detach())
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3


def names_by_optimizer(net: nn.Module, config: TrainingConfig) -> list[tuple[str, list[str]]]:
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    optimizer = build_optimizer(net, config)
    parts = getattr(optimizer, "parts", [optimizer])
    return [
        (type(part).__name__, sorted(names[id(weight)] for group in part.param_groups for weight in group["params"]))
        for part in parts
    ]


def test_adamw_trains_what_is_no_matrix() -> None:
    others = ["first.bias", "norm.bias", "norm.weight", "table.weight"]
    assert names_by_optimizer(Net(), settings()) == [("Muon", ["first.weight", "last.weight"]), ("AdamW", others)]
    assert names_by_optimizer(Net(), settings(groups={"last": {"optimizer": "adamw"}})) == [
        ("Muon", ["first.weight"]),
        ("AdamW", others),
        ("AdamW", ["last.weight"]),
    ]
    groups = {"first": {"optimizer": "muon"}}
    assert names_by_optimizer(Net(), settings(optimizer="sgd", groups=groups)) == [
        ("SGD", ["last.weight", "norm.bias", "norm.weight", "table.weight"]),
        ("Muon", ["first.weight"]),
        ("AdamW", ["first.bias"]),
    ]


def test_adamw_beside_muon_has_its_own_rate_and_both_follow_the_schedule() -> None:
    net = Net()
    optimizer = build_optimizer(net, settings(weight_decay=0.3, muon={"adamw_learning_rate": 0.002}))
    rates = {type(part).__name__: part.param_groups[0]["lr"] for part in optimizer.parts}  # type: ignore[attr-defined]
    assert rates == {"Muon": 0.01, "AdamW": 0.002}
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert [decay[id(weight)] for weight in (net.first.weight, net.table.weight, net.first.bias)] == [0.3, 0.3, 0.0]
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.0002, 0.001])
    assert {group["lr"] for group in build_optimizer(Net(), settings()).param_groups} == {0.01}


def test_training_learns_and_equals_a_plain_loop() -> None:
    trained, plain = Net(), Net()
    run(trained, settings(max_epochs=30), seed=3)
    matrices = [plain.first.weight, plain.last.weight]
    others = [plain.table.weight, plain.first.bias, plain.norm.weight, plain.norm.bias]
    optimizers = [
        Muon(matrices, lr=0.01),
        torch.optim.AdamW(others, lr=0.01, weight_decay=0, fused=True),
    ]
    losses = []
    for epoch in range(30):
        for batch in line().batches(8, epoch=epoch, seed=3):
            plain.zero_grad()
            loss = plain.training_loss(batch).total
            loss.backward()
            losses.append(float(loss.detach()))
            for optimizer in optimizers:
                optimizer.step()
    for a, b in zip(trained.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert losses[-1] < 0.05 * losses[0]


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, cut, resumed = Net(), Net(), Net()
    fields = {"schedule": "cosine", "gradient_clip": 1.0}
    run(whole, settings(**fields), seed=4)
    run(cut, settings(**fields), seed=4, out=tmp_path, stop_after=3)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    next(iter(saved["callbacks"].values()))["stopped"] = "interrupted"
    torch.save(saved, tmp_path / "checkpoints" / "last.ckpt")
    run(resumed, settings(**fields), seed=4, out=tmp_path, resume=True)
    assert same_weights(whole, resumed)
    assert not same_weights(whole, cut)


@pytest.mark.parametrize("group", ["table", "norm"])
def test_a_group_without_a_matrix_is_an_error(group: str) -> None:
    with pytest.raises(UserError, match=rf"training\.groups\.{group}\.optimizer = 'muon' finds no matrix.*adamw"):
        build_optimizer(Net(), settings(groups={group: {"optimizer": "muon"}}))
