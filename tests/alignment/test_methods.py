"""Methods of alignment against their formulas: losses, bounds of gradients, groups that teach nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nextitem.alignment.config import METHODS, AlignmentConfig
from nextitem.alignment.method import ScoredLists, advantages, best_and_worst, live_groups
from nextitem.alignment.tpma import level_weights, marginal_gains, normalised
from nextitem.core.config import parse
from nextitem.core.rollouts import Rollouts

RATIOS = (0.5, 1.0, 1.5, 10.0)


def method(kind: str, **settings: Any) -> Any:
    return parse(AlignmentConfig, {"method": {"kind": kind, **settings}}, where="test").method


def scored(
    log_probs: Tensor,
    rewards: Tensor,
    *,
    old: Tensor | None = None,
    reference: Tensor | None = None,
    targets: Tensor | None = None,
    codes: Tensor | None = None,
    is_legal: Tensor | None = None,
) -> ScoredLists:
    """Return lists of items with these log-probabilities [B, G, m, M]; padding has the code -1."""
    codes = torch.zeros(log_probs.shape, dtype=torch.int64) if codes is None else codes
    legal = torch.ones(rewards.shape, dtype=torch.bool) if is_legal is None else is_legal
    items = (codes[..., 0] >= 0).long()
    old = log_probs.detach() if old is None else old
    rollouts = Rollouts(items, codes, old, legal, "test")
    reference = log_probs.detach() if reference is None else reference
    return ScoredLists(rollouts, rewards, live_groups(rewards, legal), log_probs, reference, targets)


def two_lists(ratio: float, probability: float = 0.04) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of two lists of one code, [1, 2, 1, 1], now and before: both have this ratio."""
    log_probs = torch.full((1, 2, 1, 1), math.log(probability), dtype=torch.float64)
    return log_probs.clone().requires_grad_(), log_probs - math.log(ratio)


def gradients(kind: str, ratio: float, *, probability: float = 0.04, **settings: Any) -> tuple[float, float]:
    """Return the gradients of the loss by log pi of a list with A = 1 and of one with A = -1, times their number."""
    log_probs, old = two_lists(ratio, probability)
    lists = scored(log_probs, torch.tensor([[1.0, 0.0]], dtype=torch.float64), old=old)
    total = method(kind, **settings).loss(lists).total
    gradient = torch.autograd.grad(total, log_probs)[0].flatten() * 2
    return float(gradient[0]), float(gradient[1])


def test_every_method_of_the_command_is_one_of_the_settings() -> None:
    assert tuple(method(kind).kind for kind in METHODS) == METHODS


def test_advantages_are_normalised_within_the_legal_lists_of_a_group() -> None:
    rewards = torch.tensor([[1.0, 3.0, 99.0], [2.0, 2.0, 2.0], [1.0, 5.0, 5.0]])
    legal = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
    assert advantages(rewards, legal).tolist() == [[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert live_groups(rewards, legal).tolist() == [True, False, False]
    assert best_and_worst(rewards, legal, num_worst=2)[0].tolist()[:2] == [1, 0]


@pytest.mark.parametrize("ratio", RATIOS)
def test_ecpo_caps_the_gradient_of_bad_lists(ratio: float) -> None:
    good, bad = gradients("ecpo", ratio, epsilon=0.2, delta=0.1)
    assert math.isclose(good, -ratio if ratio <= 1.2 else 0.0, abs_tol=1e-9)  # as GRPO
    expected = {0.5: 0.0, 1.0: 1.0, 1.5: 1.3, 10.0: 1.3}[ratio]  # clipped below 0.8, capped at 1 + epsilon + delta
    assert math.isclose(bad, expected, abs_tol=1e-9)


@pytest.mark.parametrize("ratio", RATIOS)
def test_grpo_lets_the_gradient_of_bad_lists_grow(ratio: float) -> None:
    good, bad = gradients("grpo", ratio, kl_weight=0.0)
    assert math.isclose(good, -ratio if ratio <= 1.2 else 0.0, abs_tol=1e-9)
    assert math.isclose(bad, ratio if ratio >= 0.8 else 0.0, abs_tol=1e-9)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("probability", [1e-6, 0.3, 0.9])
def test_gbpo_has_the_gradients_of_binary_cross_entropy_as_bounds(ratio: float, probability: float) -> None:
    good, bad = (value / probability for value in gradients("gbpo", ratio, probability=probability))  # by pi
    old = probability / ratio
    assert math.isclose(good, -1 / max(old, probability), rel_tol=1e-6)
    assert math.isclose(bad, 1 / max(old, 1 - probability), rel_tol=1e-6)
    assert abs(good) <= 1 / probability * (1 + 1e-6)
    assert abs(bad) <= 1 / (1 - probability) * (1 + 1e-6)


def test_gbpo_does_not_push_down_what_is_never_generated_but_ecpo_does() -> None:
    by_logit = [gradients(kind, 1.0, probability=1e-9)[1] for kind in ("gbpo", "ecpo")]
    assert by_logit[0] < 1e-8
    assert math.isclose(by_logit[1], 1.0)


@pytest.mark.parametrize("kind", ["grpo", "ecpo"])
def test_on_policy_the_ratio_is_one_and_nothing_is_clipped(kind: str) -> None:
    log_probs = torch.randn(3, 4, 2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rewards = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    terms = method(kind).loss(scored(log_probs, rewards))
    assert float(terms.named["clip_rate"]) == 0
    assert abs(float(terms.total.detach())) < 1e-6  # the advantages of a group sum to 0
    gradient = torch.autograd.grad(terms.total, log_probs)[0]
    assert bool(gradient.isfinite().all())
    assert bool((gradient != 0).any())


def test_grpo_is_held_by_the_divergence_from_the_reference() -> None:
    log_probs = torch.full((1, 2, 1, 2), -1.0, dtype=torch.float64).requires_grad_()
    reference = torch.full((1, 2, 1, 2), -1.5, dtype=torch.float64)
    rewards = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    with_kl, without = (
        method("grpo", kl_weight=weight).loss(scored(log_probs, rewards, reference=reference)).total
        for weight in (0.5, 0.0)
    )
    assert math.isclose(float((with_kl - without).detach()), 0.5 * (math.exp(-0.5) + 0.5 - 1), rel_tol=1e-6)


def test_dpo_is_its_formula_and_falls_as_the_better_list_gains() -> None:
    log_probs = torch.tensor([[[[-1.0, -2.0]], [[-1.5, -0.5]]]], dtype=torch.float64).requires_grad_()
    reference = torch.tensor([[[[-1.2, -2.0]], [[-1.0, -0.5]]]], dtype=torch.float64)
    rewards = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    terms = method("dpo", beta=0.5).loss(scored(log_probs, rewards, reference=reference))
    margin = (-3.0 + 3.2) - (-2.0 + 1.5)
    assert math.isclose(float(terms.total.detach()), math.log1p(math.exp(-0.5 * margin)))
    assert math.isclose(float(terms.named["chosen"]), 0.2, rel_tol=1e-6)
    assert math.isclose(float(terms.named["margin"]), margin)
    gradient = torch.autograd.grad(terms.total, log_probs)[0][0]
    assert bool((gradient[0] < 0).all())
    assert bool((gradient[1] > 0).all())


def test_dpo_can_learn_from_the_last_code_alone() -> None:
    log_probs = torch.randn(2, 2, 2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rewards = torch.tensor([[2.0, 1.0], [3.0, 1.0]])
    every, last = (method("dpo", last_code_only=flag).loss(scored(log_probs, rewards)).total for flag in (False, True))
    assert float(every.detach()) == float(last.detach())
    gradient = torch.autograd.grad(last, log_probs)[0]
    assert bool((gradient[..., :-1] == 0).all())
    torch.testing.assert_close(gradient[..., -1], torch.autograd.grad(every, log_probs)[0][..., -1])


def test_s_dpo_with_one_rival_is_dpo_and_more_rivals_raise_the_loss() -> None:
    log_probs = torch.randn(2, 4, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reference = torch.randn(2, 4, 1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rewards = torch.tensor([[4.0, 1.0, 2.0, 3.0], [9.0, 3.0, 4.0, 5.0]], dtype=torch.float64)

    def loss(kind: str, count: int) -> float:
        part = scored(log_probs[:, :count], rewards[:, :count], reference=reference[:, :count])
        return float(method(kind).loss(part).total)

    assert math.isclose(loss("s-dpo", 2), loss("dpo", 2))
    assert loss("s-dpo", 2) < loss("s-dpo", 3) < loss("s-dpo", 4)
    gain = 0.1 * (log_probs - reference).sum((2, 3))
    expected = torch.log1p((gain[:, 1:] - gain[:, :1]).exp().sum(1)).mean()
    assert math.isclose(loss("s-dpo", 4), float(expected))


def test_s_dpo_leaves_out_lists_that_are_not_legal() -> None:
    log_probs = torch.randn(1, 3, 1, 2, generator=torch.Generator().manual_seed(0))
    legal = torch.tensor([[True, True, False]])
    three = scored(log_probs, torch.tensor([[2.0, 1.0, 0.0]]), is_legal=legal)
    two = scored(log_probs[:, :2], torch.tensor([[2.0, 1.0]]))
    assert float(method("s-dpo").loss(three).total) == float(method("s-dpo").loss(two).total)


def test_methods_pick_the_lists_that_they_learn_from() -> None:
    rewards, legal = torch.tensor([[1.0, 4.0, 2.0, 9.0]]), torch.tensor([[True, True, True, False]])
    assert method("rsft", num_best=2).pick(rewards, legal).tolist() == [[1, 2]]
    for kind in ("dpo", "ipa"):
        assert method(kind).pick(rewards, legal).tolist() == [[1, 0]]
    assert method("s-dpo", num_worst=2).pick(rewards, legal).tolist() == [[1, 0, 2]]
    assert all(method(kind).pick(rewards, legal) is None for kind in ("grpo", "ecpo", "gbpo", "tpma"))


def test_rsft_is_the_cross_entropy_of_the_lists() -> None:
    log_probs = torch.tensor([[[[-1.0, -3.0], [0.0, 0.0]], [[-2.0, -2.0], [-5.0, -1.0]]]])
    codes = torch.zeros(log_probs.shape, dtype=torch.int64)
    codes[0, 0, 1] = -1  # the first list has one item
    lists = scored(log_probs, torch.tensor([[2.0, 1.0]]), codes=codes)
    assert float(method("rsft").loss(lists).total) == (2.0 + 2.5) / 2


@pytest.mark.parametrize("kind", METHODS)
def test_groups_that_teach_nothing_have_no_gradient(kind: str) -> None:
    """Equal rewards, one legal list, or none: the other group decides alone."""
    generator = torch.Generator().manual_seed(0)
    log_probs = -torch.rand(4, 3, 1, 2, generator=generator)
    rewards = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [5.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    legal = torch.tensor([[True] * 3, [True] * 3, [True, False, False], [False] * 3])
    codes = torch.zeros(log_probs.shape, dtype=torch.int64).masked_fill(~legal[..., None, None], -1)
    log_probs = log_probs.masked_fill(codes < 0, 0).requires_grad_()
    old = (log_probs.detach() - 0.1).masked_fill(codes < 0, 0)
    targets = torch.zeros((4, 1, 2), dtype=torch.int64)
    lists = scored(log_probs, rewards, codes=codes, is_legal=legal, old=old, targets=targets)
    total = method(kind).loss(lists).total
    assert bool(total.isfinite())
    gradient = torch.autograd.grad(total, log_probs)[0]
    assert bool((gradient[1:] == 0).all())
    assert bool((gradient[0] != 0).any())
    alone = scored(log_probs[:1], rewards[:1], old=old[:1], targets=targets[:1])
    torch.testing.assert_close(method(kind).loss(alone).total, total)


@pytest.mark.parametrize("kind", METHODS)
def test_without_any_live_group_the_loss_is_zero(kind: str) -> None:
    log_probs = torch.full((2, 3, 1, 2), -1.0, requires_grad=True)
    total = method(kind).loss(scored(log_probs, torch.ones(2, 3))).total
    assert float(total.detach()) == 0
    assert bool((torch.autograd.grad(total, log_probs)[0] == 0).all())


def test_tpma_gates_codes_below_a_wrong_prefix() -> None:
    codes = torch.tensor([[[[3, 5, 7, 0]], [[3, 9, 7, 0]], [[1, 5, 7, 0]]]])
    targets = torch.tensor([[[3, 5, 7, 0]]])
    gains, gates = marginal_gains(codes, targets, level_weights(4, last=0.0))
    assert gains[0, :, 0].tolist() == [[2, 2, 1, 0], [2, 0, 1, 0], [0, 2, 1, 0]]
    expected = torch.tensor([[1, 1, 1, 1], [1, 1, 1 / 2, 2 / 3], [1, 0, 1 / 2, 2 / 3]])
    torch.testing.assert_close(gates[0, :, 0], expected)
    assert level_weights(5, last=0.0).tolist() == [2, 2, 1, 1, 0]  # as published


def test_tpma_matches_the_best_of_several_targets_prefix_by_prefix() -> None:
    codes, targets = torch.tensor([[[[3, 5, 7]]]]), torch.tensor([[[3, 1, 1], [8, 5, 7], [-1, -1, -1]]])
    gains, gates = marginal_gains(codes, targets, torch.tensor([1.0, 1.0, 1.0]))
    assert gains[0, 0, 0].tolist() == [1, 0, 1]  # 1 by the first, then 1 and 2 by the second
    assert gates[0, 0, 0].tolist() == [1, 1, 0.5]


def test_tpma_is_not_clipped_and_normalises_each_position() -> None:
    log_probs, old = torch.zeros(1, 2, 1, 2), torch.full((1, 2, 1, 2), -math.log(10))
    codes = torch.tensor([[[[1, 1]], [[2, 1]]]])
    lists = scored(log_probs, torch.tensor([[1.0, 0.0]]), old=old, codes=codes, targets=torch.tensor([[[1, 1]]]))
    # First code: gains 2 and 0, advantages 1 and -1. Second: equal gains 0, so 0; the gate of the second list is 0.
    terms = method("tpma", reward_weight=0.0).loss(lists)
    assert abs(float(terms.total)) < 1e-5  # 10 - 10, both of the gate 1
    legal = torch.ones(1, 2, dtype=torch.bool)
    values = normalised(torch.tensor([[[[2.0, 1.0]], [[0.0, 1.0]]]]), legal)
    assert values[0, :, 0].tolist() == [[1.0, 0.0], [-1.0, 0.0]]
    with_reward = method("tpma", reward_weight=1.0).loss(lists)
    # Second code: gate 1 and A 1 for the first list, gate 0 for the second: -10 / 2 codes / 2 lists.
    assert math.isclose(float(with_reward.total), -10 / 4, rel_tol=1e-5)
