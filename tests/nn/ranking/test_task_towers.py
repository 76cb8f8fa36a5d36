"""Multi-task towers: one expert equals a shared bottom, gates are means, ple equals its equations."""

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
def test_every_task_has_a_logit_and_every_weight_a_gradient(sharing: str) -> None:
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


def test_mix_equals_a_mean_weighted_by_the_softmax_of_the_gate() -> None:
    gate = torch.randn(4, 3)
    torch.testing.assert_close(mix(gate, torch.ones(4, 3, 2)), torch.ones(4, 2))
    experts = torch.randn(4, 3, 2)
    expected = torch.stack(
        [torch.stack([gate.softmax(1)[p, e] * experts[p, e] for e in range(3)]).sum(0) for p in range(4)]
    )
    torch.testing.assert_close(mix(gate, experts), expected)


def test_ple_with_two_levels_equals_its_equations() -> None:
    network, x = towers("ple", experts=2), inputs()
    first, second = part(network, "shared.levels", nn.ModuleList)

    def run(level: nn.Module, task_inputs: list[torch.Tensor], shared: torch.Tensor) -> list[torch.Tensor]:
        experts = [part(level, f"experts.{t}", nn.ModuleList) for t in range(T + 1)]
        gates = part(level, "gates", nn.ModuleList)
        per_task = [[expert(task_inputs[t]) for expert in experts[t]] for t in range(T)]
        common = [expert(shared) for expert in experts[T]]
        out = []
        for t in range(T):
            visible = torch.stack([*per_task[t], *common], dim=1)
            weight = torch.softmax(gates[t](task_inputs[t]), 1)
            out.append((weight[..., None] * visible).sum(1))
        if len(gates) > T:
            visible = torch.stack([*(output for outputs in per_task for output in outputs), *common], dim=1)
            weight = torch.softmax(gates[T](shared), 1)
            out.append((weight[..., None] * visible).sum(1))
        return out

    first_outputs = run(first, [x] * T, x)
    second_outputs = run(second, first_outputs[:T], first_outputs[T])
    expected = torch.cat([tower(hidden) for tower, hidden in zip(network.towers, second_outputs, strict=True)], dim=1)
    torch.testing.assert_close(network(x), expected)


def test_experts_of_a_task_do_not_affect_other_tasks() -> None:
    network = towers("ple", levels=1)
    logits = network(inputs())
    with torch.no_grad():
        for parameter in network.get_submodule("shared.levels.0.experts.1").parameters():
            parameter.add_(1)
    assert (network(inputs()) != logits).any(0).tolist() == [False, True, False]
