"""Tests of FTRL-Proximal (by hand, against its objective, exact zeros) and of groups with several optimizers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from nextitem.core.config import parse
from nextitem.core.errors import UserError
from nextitem.core.roles import LossTerms
from nextitem.training.config import TrainingConfig
from nextitem.training.fit import fit
from nextitem.training.ftrl import FTRL
from nextitem.training.optimizers import build_optimizer, clear_state


@dataclass(frozen=True)
class Rows:
    inputs: Tensor
    targets: Tensor

    def to(self, device: torch.device | str) -> Rows:
        return self

    def share(self, rank: int, count: int) -> Rows:
        return Rows(self.inputs[rank::count], self.targets[rank::count])

    @property
    def loss_count(self) -> int:
        return len(self.inputs)


class LineExamples:
    """Examples of y = 3x - 1, shuffled by (seed, epoch)."""

    def num_batches(self, batch_size: int) -> int:
        return 64 // batch_size

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[Rows]:
        inputs = torch.linspace(-1, 1, 64)[:, None].repeat(1, 4)
        order = torch.randperm(64, generator=torch.Generator().manual_seed(1000 * seed + epoch))
        for rows in order.split(batch_size)[start:]:
            yield Rows(inputs[rows], 3 * inputs[rows, :1] - 1)


class Net(nn.Module):
    """Network with a wide part followed by a deep part."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.wide = nn.Linear(4, 16)
        self.deep = nn.ModuleList([nn.Linear(16, 4), nn.Linear(4, 1)])

    def training_loss(self, batch: Rows) -> LossTerms:
        predictions = self.deep[1](torch.relu(self.deep[0](torch.relu(self.wide(batch.inputs)))))
        return LossTerms((predictions - batch.targets).square().mean())


def run(net: Net, settings: TrainingConfig, **arguments: object) -> None:
    fit(net, LineExamples(), settings, progress=False, **arguments)  # type: ignore[arg-type]


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def weights_after(gradients: list[float], *, start: float = 0.0, **settings: float) -> list[float]:
    """Return the weight after each step of FTRL on these gradients."""
    weight = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer, weights = FTRL([weight], **{"lr": 0.5, **settings}), []
    for gradient in gradients:
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        weights.append(weight.item())
    return weights


def test_two_steps_equal_values_computed_by_hand() -> None:
    weights = weights_after([3.0, -4.0], l1=1.0, weight_decay=0.1)
    first = -(3 - 1) / ((1 + 3) / 0.5 + 0.1)  # z = g, n = 9
    z = 3 + (-4 - (5 - 3) / 0.5 * first)  # sigma = (sqrt(25) - sqrt(9)) / lr
    assert abs(z) < 1  # within l1: exactly zero
    assert weights == [pytest.approx(first, abs=1e-12), 0.0]


def test_each_weight_minimises_the_linearised_objective() -> None:
    """Check eq. 1: the argmin of g_{1:t} w + 1/2 sum sigma_s (w - w_s)^2 + l1 |w| + l2 w^2 / 2; 1 / lr at first."""
    generator = torch.Generator().manual_seed(0)
    gradients = (torch.randn(12, generator=generator) + 0.4).tolist()
    rate, l1, l2 = 0.3, 0.7, 0.2
    weights = weights_after(gradients, lr=rate, l1=l1, weight_decay=l2)
    former_weights = [0.0, *weights]
    for t in range(1, len(gradients) + 1):
        squares = [sum(g * g for g in gradients[:s]) for s in range(t + 1)]
        sigmas = [(math.sqrt(squares[s + 1]) - math.sqrt(squares[s])) / rate for s in range(t)]

        def objective(w: float, t: int = t, sigmas: list[float] = sigmas) -> float:
            proximal = sum(s * (w - former_weights[i]) ** 2 for i, s in enumerate(sigmas)) + w * w / rate
            return float(sum(gradients[:t])) * w + proximal / 2 + l1 * abs(w) + l2 * w * w / 2

        best = minimize_scalar(objective, bounds=(-5, 5), method="bounded", options={"xatol": 1e-10}).x
        assert weights[t - 1] == pytest.approx(best, abs=1e-6)


def test_a_single_feature_reaches_its_closed_form() -> None:
    """With a share p of clicks the weight is the log-odds of p, and 0 if l1 outweighs all gradients."""
    share, log_odds = 0.8, math.log(0.8 / 0.2)

    def train_weight(l1: float) -> float:
        weight = nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))
        optimizer = FTRL([weight], lr=0.5, l1=l1)
        for _ in range(3000):
            optimizer.zero_grad()
            probability = torch.sigmoid(weight[0, 0])
            (-share * probability.log() - (1 - share) * (1 - probability).log()).backward()
            optimizer.step()
        return weight.item()

    assert train_weight(0.0) == pytest.approx(log_odds, abs=1e-4)
    assert train_weight(4000.0) == 0.0


def test_l1_makes_the_weights_of_irrelevant_features_exactly_zero() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(2000, 20, generator=generator)
    true_weights = torch.zeros(20)
    true_weights[:3] = torch.tensor([2.0, -1.5, 1.0])
    labels = (torch.rand(2000, generator=generator) < torch.sigmoid(inputs @ true_weights)).float()
    net = nn.Linear(20, 1)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    optimizer = build_optimizer(net, TrainingConfig(optimizer="ftrl", learning_rate=0.5, l1=12.0))
    for epoch in range(20):
        for rows in torch.randperm(2000, generator=torch.Generator().manual_seed(epoch)).split(100):
            optimizer.zero_grad()
            logits = net(inputs[rows])[:, 0]
            nn.functional.binary_cross_entropy_with_logits(logits, labels[rows]).backward()
            optimizer.step()
    weights = net.weight.detach()[0]
    assert (weights != 0).tolist() == [True] * 3 + [False] * 17
    assert weights[:3].sign().tolist() == [1, -1, 1]


@pytest.mark.parametrize(("l1", "decay"), [(0.0, 0.0), (0.3, 0.2)])
def test_a_step_without_a_gradient_does_not_change_weights(l1: float, decay: float) -> None:
    assert weights_after([0.0, 0.0], start=0.7, l1=l1, weight_decay=decay) == pytest.approx([0.7, 0.7])


SIDE_BY_SIDE = {
    "optimizer": "adam",
    "groups": {"wide": {"optimizer": "ftrl", "learning_rate": 0.2, "l1": 1e-3}},
}


def settings(**fields: object) -> TrainingConfig:
    values = {"max_epochs": 6, "batch_size": 8, "learning_rate": 0.01, "patience": None, **SIDE_BY_SIDE, **fields}
    return parse(TrainingConfig, values, where="test")


def test_each_group_is_trained_by_its_own_optimizer() -> None:
    chained, plain = Net(), Net()
    run(chained, settings(), seed=3)
    wide, deep = list(plain.wide.parameters()), list(plain.deep.parameters())
    optimizers = [
        FTRL([{"params": wide[:1], "l1": 1e-3}, {"params": wide[1:]}], lr=0.2),
        torch.optim.Adam(deep, lr=0.01),
    ]
    for epoch in range(6):
        for batch in LineExamples().batches(8, epoch=epoch, seed=3):
            plain.zero_grad()
            plain.training_loss(batch).total.backward()
            for optimizer in optimizers:
                optimizer.step()
    for a, b in zip(chained.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("fields", [{}, {"groups": {}, "optimizer": "ftrl", "learning_rate": 0.3, "l1": 0.01}])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path, fields: dict[str, object]) -> None:
    whole, cut, resumed = Net(), Net(), Net()
    run(whole, settings(**fields), seed=4)
    run(cut, settings(**fields), seed=4, out=tmp_path, stop_after=3)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    training_state = next(iter(saved["callbacks"].values()))
    training_state["stopped"] = "interrupted"
    torch.save(saved, tmp_path / "checkpoints" / "last.ckpt")
    run(resumed, settings(**fields), seed=4, out=tmp_path, resume=True)
    assert same_weights(whole, resumed)
    assert not same_weights(whole, cut)


def test_a_schedule_changes_the_rate_of_every_group() -> None:
    net = Net()
    groups = {"deep.1": {"optimizer": "sgd", "learning_rate": 0.5}}
    optimizer = build_optimizer(net, settings(groups=groups))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.001, 0.05])


def test_clear_state_deletes_the_moments_of_a_parameter() -> None:
    net = Net()
    optimizer = build_optimizer(net, settings())
    net.training_loss(next(LineExamples().batches(8, epoch=0, seed=0))).total.backward()
    optimizer.step()

    def num_states() -> int:
        return sum(len(part["state"]) for part in optimizer.state_dict()["parts"])

    before = num_states()
    for parameter in net.wide.parameters():
        clear_state(optimizer, parameter)
    assert (before, num_states()) == (6, 4)


def test_the_longest_matching_name_selects_the_group() -> None:
    groups = {"deep": {"optimizer": "sgd"}, "deep.1": {"optimizer": "ftrl"}}
    optimizer = build_optimizer(Net(), settings(groups=groups))

    def sizes(part: torch.optim.Optimizer) -> list[tuple[int, ...]]:
        return [tuple(p.shape) for group in part.param_groups for p in group["params"]]

    assert [(type(part).__name__, sizes(part)) for part in optimizer.parts] == [  # type: ignore[attr-defined]
        ("Adam", [(16, 4), (16,)]),
        ("SGD", [(4, 16), (4,)]),
        ("FTRL", [(1, 4), (1,)]),
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"groups": {"wid": {}}}, r"training\.groups\.wid: no parameter.*there are: wide, deep"),
        ({"schedule": "cosine"}, "constant"),
        ({"warmup_steps": 5}, "warmup_steps = 0"),
    ],
)
def test_impossible_settings_are_named_in_the_error(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_optimizer(Net(), settings(**fields))
