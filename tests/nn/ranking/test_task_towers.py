"""Multi-task towers: one expert is a shared bottom, gates are means, ple as its equations say."""

from __future__ import annotations

import pytest
import torch
from support.modules import part
from torch import nn

from nextitem.nn.ranking.task_towers import TaskTowers, mix

X, T = 6, 3


def towers(sharing: str, **settings: int) -> TaskTowers:
    torch.manual_seed(0)
    return TaskTowers(X, tasks=T, hidden=(8, 5), tower=(4,), sharing=sharing, **settings)  # type: ignore[arg-type]


def inputs() -> torch.Tensor:
    return torch.randn(9, X, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("sharing", ["shared-bottom", "mmoe", "ple"])
def test_a_logit_a_task_and_a_gradient_for_every_weight(sharing: str) -> None:
    network = towers(sharing)
    logits = network(inputs())
    assert logits.shape == (9, T)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_mmoe_with_one_expert_is_a_shared_bottom() -> None:
    shared, mixture = towers("shared-bottom"), towers("mmoe", experts=1)
    bottom = shared.get_submodule("shared.layers").state_dict()
    mixture.get_submodule("shared.experts.0").load_state_dict(bottom)
    mixture.towers.load_state_dict(shared.towers.state_dict())
    torch.testing.assert_close(mixture(inputs()), shared(inputs()))
    single = towers("ple", experts=1, levels=1)
    for group in part(single, "shared.levels.0.experts", nn.ModuleList):
        group.get_submodule("0").load_state_dict(bottom)
    single.towers.load_state_dict(shared.towers.state_dict())
    torch.testing.assert_close(single(inputs()), shared(inputs()))


def test_gates_sum_to_one() -> None:
    gate = torch.randn(4, 3)
    torch.testing.assert_close(mix(gate, torch.ones(4, 3, 2)), torch.ones(4, 2))
    experts = torch.randn(4, 3, 2)
    expected = torch.stack(
        [torch.stack([gate.softmax(1)[p, e] * experts[p, e] for e in range(3)]).sum(0) for p in range(4)]
    )
    torch.testing.assert_close(mix(gate, experts), expected)


def test_ple_with_two_levels_as_its_equations_say() -> None:
    network, x = towers("ple", experts=2), inputs()
    first, second = part(network, "shared.levels", nn.ModuleList)

    def run(level: nn.Module, own: list[torch.Tensor], shared: torch.Tensor) -> list[torch.Tensor]:
        experts = [part(level, f"experts.{t}", nn.ModuleList) for t in range(T + 1)]
        gates = part(level, "gates", nn.ModuleList)
        per_task = [[expert(own[t]) for expert in experts[t]] for t in range(T)]
        common = [expert(shared) for expert in experts[T]]
        out = []
        for t in range(T):
            seen = torch.stack([*per_task[t], *common], dim=1)
            weight = torch.softmax(gates[t](own[t]), 1)
            out.append((weight[..., None] * seen).sum(1))
        if len(gates) > T:
            seen = torch.stack([*(made for own_experts in per_task for made in own_experts), *common], dim=1)
            weight = torch.softmax(gates[T](shared), 1)
            out.append((weight[..., None] * seen).sum(1))
        return out

    made = run(first, [x] * T, x)
    each = run(second, made[:T], made[T])
    expected = torch.cat([tower(own) for tower, own in zip(network.towers, each, strict=True)], dim=1)
    torch.testing.assert_close(network(x), expected)


def test_a_tasks_own_experts_are_its_own() -> None:
    network = towers("ple", levels=1)
    before = network(inputs())
    with torch.no_grad():
        for parameter in network.get_submodule("shared.levels.0.experts.1").parameters():
            parameter.add_(1)
    assert (network(inputs()) != before).any(0).tolist() == [False, True, False]
