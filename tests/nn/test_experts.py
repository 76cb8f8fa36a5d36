"""Tests of the mixture of experts: known answers, dispatch against a plain loop, gradients, and balance."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest
import torch
from torch import Tensor, nn

from nextitem.nn.experts import Experts, ExpertsConfig, FeedForward, feed_forward, parameter_counts, take_balance_losses

WIDTH, HIDDEN = 8, 16


def experts_of(*, activation: Any = "gelu", dropout: float = 0.0, **settings: Any) -> Experts:
    torch.manual_seed(3)
    config = ExpertsConfig.model_validate(settings)
    return Experts(config, WIDTH, hidden=HIDDEN, activation=activation, dropout=dropout)


def token_by_token(block: Experts, tokens: Tensor) -> Tensor:
    """Return the output of a mixture, computed for each token on its own."""
    rows = []
    for token in tokens:
        logits = block.gate(token)
        scores = logits.softmax(0) if block.config.gate == "softmax" else logits.sigmoid()
        picks = (scores + block.bias).argsort(descending=True, stable=True)[: block.config.top_k].tolist()
        total = sum(scores[pick] for pick in picks) if block.config.top_k > 1 else 1.0
        row = sum(scores[pick] / total * block.routed[pick](token) for pick in picks)
        rows.append(row + sum(expert(token) for expert in block.shared))
    return torch.stack(rows)


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
@pytest.mark.parametrize("activation", ["gelu", "relu", "swiglu"])
def test_one_expert_equals_the_dense_block_bit_for_bit(gate: str, activation: Any) -> None:
    block = experts_of(num_experts=1, top_k=1, gate=gate, activation=activation, dropout=0.3)
    dense = FeedForward(WIDTH, hidden=HIDDEN, activation=activation, dropout=0.3)
    dense.load_state_dict(block.routed[0].state_dict())
    tokens = torch.randn(5, 7, WIDTH)
    outputs, gradients = [], []
    for module in (block, dense):
        torch.manual_seed(1)
        inputs = tokens.clone().requires_grad_()
        output = module(inputs)
        output.square().sum().backward()
        outputs.append(output)
        gradients.append(inputs.grad)
    assert torch.equal(*outputs)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
def test_all_experts_with_equal_gates_are_their_mean(gate: str) -> None:
    block = experts_of(num_experts=4, top_k=4, gate=gate)
    nn.init.zeros_(block.gate.weight)
    tokens = torch.randn(6, WIDTH)
    torch.testing.assert_close(block(tokens), torch.stack([expert(tokens) for expert in block.routed]).mean(0))


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("top_k", "num_shared"), [(1, 0), (2, 1), (3, 2)])
def test_sorted_tokens_get_what_each_token_gets_alone(gate: str, top_k: int, num_shared: int) -> None:
    block = experts_of(num_experts=5, top_k=top_k, num_shared=num_shared, gate=gate)
    block.bias += torch.tensor([0.0, 0.3, -0.1, 0.0, 0.0])
    tokens = torch.randn(4, 9, WIDTH)
    expected = token_by_token(block, tokens.view(-1, WIDTH)).view(tokens.shape)
    torch.testing.assert_close(block(tokens), expected)
    assert block(tokens[:0]).shape == (0, 9, WIDTH)


def test_an_expert_computes_nothing_for_tokens_that_did_not_select_it() -> None:
    block = experts_of(num_experts=4, top_k=2)
    sizes = []
    for expert in block.routed:
        expert.register_forward_hook(lambda _, inputs, output: sizes.append(len(inputs[0])))
    tokens = torch.randn(50, WIDTH)
    block(tokens)
    assert len(sizes) == 4
    assert sum(sizes) == 2 * 50
    assert sizes == block.route(tokens).experts.flatten().bincount(minlength=4).tolist()


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_gradient_reaches_the_gate_and_every_selected_expert(top_k: int) -> None:
    block = experts_of(num_experts=3, top_k=top_k)
    tokens = torch.randn(40, WIDTH)
    block(tokens).square().sum().backward()
    assert block.gate.weight.grad is not None
    assert bool((block.gate.weight.grad.abs().sum(1) > 0).all())
    for expert in block.routed:
        assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in expert.parameters())


def test_the_bias_selects_but_does_not_weigh() -> None:
    block = experts_of(num_experts=4, top_k=2)
    tokens = torch.randn(20, WIDTH)
    block.bias[3] = 2.0  # above the difference of any two scores
    routing = block.route(tokens)
    assert routing.experts[:, 0].tolist() == [3] * 20
    two = routing.scores.gather(1, routing.experts)
    torch.testing.assert_close(routing.weights, two / two.sum(1, keepdim=True))


def test_the_bias_rises_below_the_mean_load_and_falls_above_it() -> None:
    block = experts_of(num_experts=4, top_k=1, balance_rate=0.1)
    block.train()
    block.load = torch.tensor([6, 0, 2, 0])
    block.after_batch(1.0)
    torch.testing.assert_close(block.bias, torch.tensor([-0.1, 0.1, 0.0, 0.1]))
    block.after_batch(1.0)  # a batch without tokens moves nothing
    torch.testing.assert_close(block.bias, torch.tensor([-0.1, 0.1, 0.0, 0.1]))
    assert "bias" in block.state_dict()
    assert "load" not in block.state_dict()


def test_the_auxiliary_loss_is_that_of_switch() -> None:
    block = experts_of(num_experts=4, top_k=2, balance="loss", balance_weight=0.5)
    tokens = torch.randn(30, WIDTH)
    block(tokens)
    loss = take_balance_losses(block)
    routing = block.route(tokens)
    shares = routing.experts.flatten().bincount(minlength=4) / 60
    assert loss is not None
    torch.testing.assert_close(loss, 0.5 * 4 * (shares * routing.scores.mean(0)).sum())
    assert take_balance_losses(block) is None
    block.eval()
    block(tokens)
    assert take_balance_losses(block) is None
    assert not bool(experts_of(balance=None)(tokens).isnan().any())


def test_equal_loads_have_the_smallest_auxiliary_loss() -> None:
    block = experts_of(num_experts=2, top_k=1, balance="loss", balance_weight=1.0)
    nn.init.zeros_(block.gate.weight)
    block.gate.weight.data[0, 0], block.gate.weight.data[1, 0] = 3.0, -3.0
    even, skewed = torch.zeros(10, WIDTH), torch.ones(10, WIDTH)
    even[:5, 0], even[5:, 0] = 1.0, -1.0
    losses = []
    for tokens in (even, skewed):
        block(tokens)
        loss = block.take_balance_loss()
        assert loss is not None
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(1.0)
    assert losses[1] > 1.9


def largest_load(balance: str | None) -> float:
    """Return the largest share of an expert after training on tokens of which nine tenths are one cluster."""
    block = experts_of(num_experts=6, top_k=1, balance=balance, balance_rate=0.01, balance_weight=0.1)
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(6, WIDTH, generator=generator)
    weights = torch.tensor([0.9, 0.02, 0.02, 0.02, 0.02, 0.02])
    target = torch.randn(WIDTH, WIDTH, generator=generator)
    optimizer = torch.optim.Adam(block.parameters(), lr=0.01)
    loads = torch.zeros(6)
    for step in range(240):
        clusters = weights.multinomial(64, replacement=True, generator=generator)
        tokens = centres[clusters] + 0.3 * torch.randn(64, WIDTH, generator=generator)
        loss = (block(tokens) - (tokens @ target).tanh()).square().mean()
        auxiliary = take_balance_losses(block)
        loss = loss if auxiliary is None else loss + auxiliary
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= 180:
            loads += block.load
        block.after_batch(1.0)
    return float(loads.max() / loads.sum())


@pytest.mark.slow
def test_both_balances_spread_the_tokens_of_a_dominant_cluster() -> None:
    shares = {balance: largest_load(balance) for balance in (None, "loss", "bias")}
    assert shares[None] > 0.8, shares  # without a remedy, the cluster's expert gets nearly everything
    assert shares["loss"] < 0.5, shares
    assert shares["bias"] < 0.25, shares


def test_counts_of_parameters() -> None:
    of_expert = WIDTH * HIDDEN + HIDDEN + HIDDEN * WIDTH + WIDTH
    block = experts_of(num_experts=6, top_k=2, num_shared=1)
    counts = parameter_counts(nn.Sequential(block, nn.Linear(WIDTH, 1)))
    assert counts.total == 7 * of_expert + 6 * WIDTH + WIDTH + 1
    assert counts.active == 3 * of_expert + 6 * WIDTH + WIDTH + 1
    assert isinstance(feed_forward(WIDTH, hidden=HIDDEN, experts=None), FeedForward)
    assert isinstance(feed_forward(WIDTH, hidden=HIDDEN, experts=ExpertsConfig()), Experts)
    smaller = feed_forward(WIDTH, hidden=HIDDEN, experts=ExpertsConfig(hidden=4))
    assert smaller.get_parameter("routed.0.down.weight").shape == (WIDTH, 4)


def test_more_selected_than_there_are_experts_is_an_error() -> None:
    with pytest.raises(pydantic.ValidationError, match="top_k = 3 is more than num_experts = 2"):
        ExpertsConfig(num_experts=2, top_k=3)
