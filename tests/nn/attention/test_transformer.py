"""Transformer blocks: equal their equations, attend to no later position, and continue from a cache."""

from __future__ import annotations

import math

import pytest
import torch
from support.modules import part
from torch import Tensor, nn

from nextitem.nn.attention.key_value_cache import KeyValueCache, NewPositions
from nextitem.nn.attention.transformer import BLOCKS, LiGRBlock, PreNormBlock, SelfAttention

L, D, H = 5, 6, 2


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


def attend(layer: SelfAttention, x: Tensor) -> Tensor:
    """Return causal attention, computed position by position and head by head."""
    query, key, value = linear(layer.query_key_value, x).split(D, dim=-1)
    mixed = torch.zeros(L, D, dtype=x.dtype)
    for head in range(H):
        part = slice(head * D // H, (head + 1) * D // H)
        for t in range(L):
            logits = torch.stack([query[t, part] @ key[s, part] for s in range(t + 1)]) / math.sqrt(D // H)
            mixed[t, part] = logits.softmax(0) @ value[: t + 1, part]
    return linear(layer.output, mixed)


def block_by_its_equations(block: nn.Module, x: Tensor) -> Tensor:
    if isinstance(block, PreNormBlock):
        x = x + attend(block.attention, norm(block.norm_attention, x))
        inner = linear(part(block, "feed.0", nn.Linear), norm(block.norm_feed, x))
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        return x + linear(part(block, "feed.3", nn.Linear), inner)
    assert isinstance(block, LiGRBlock)
    x = x + linear(block.gate_attention, x).sigmoid() * attend(block.attention, norm(block.norm_attention, x))
    left, right = linear(block.up, norm(block.norm_feed, x)).split(4 * D, dim=-1)
    return x + linear(block.gate_feed, x).sigmoid() * linear(block.down, left * left.sigmoid() * right)


def block_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    block = BLOCKS[name](D, heads=H, dropout=0.4).double()
    with torch.no_grad():  # norms and biases differ from their initial values, so that a missing one would show
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=parameter.dtype))
    return block


@pytest.mark.parametrize("name", ["pre-norm", "ligr"])
def test_block_equals_its_equations(name: str) -> None:
    """The block of SASRec's authors has its own reference in tests/models/test_sasrec.py."""
    block = block_of(name).eval()
    x = torch.randn(2, L, D, dtype=torch.float64)
    expected = torch.stack([block_by_its_equations(block, row) for row in x])
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("name", BLOCKS)
def test_output_of_a_position_depends_on_no_later_position(name: str) -> None:
    block = block_of(name).eval()
    x = torch.randn(1, L, D, dtype=torch.float64)
    for t in range(L):
        tracked = x.clone().requires_grad_()
        block(tracked)[0, t].sum().backward()
        assert tracked.grad is not None
        has_gradient = tracked.grad[0].abs().sum(1) > 0
        assert has_gradient.tolist() == [s <= t for s in range(L)]


@pytest.mark.parametrize("name", BLOCKS)
def test_new_positions_with_a_cache_equal_those_of_the_whole_sequence(name: str) -> None:
    """Two rows with 3 and 1 cached positions get 1 and 4 more."""
    block = block_of(name).eval()
    x = torch.randn(2, L, D, dtype=torch.float64)
    first = KeyValueCache()
    block(x[:, :3], first)
    num_cached, num_new = torch.tensor([3, 1]), torch.tensor([1, 4])
    new_positions = torch.stack([torch.cat([x[0, 3:4], torch.randn(3, D)]), x[1, 1:]])
    output = block(new_positions, KeyValueCache(first.keys_values, NewPositions(num_cached, num_new)))
    torch.testing.assert_close(output[0, :1], block(x)[0, 3:4])
    torch.testing.assert_close(output[1], block(x)[1, 1:])


@pytest.mark.parametrize("name", BLOCKS)
def test_dropout_is_active_only_in_training_and_depends_on_the_seed(name: str) -> None:
    block = block_of(name)
    x = torch.randn(1, L, D, dtype=torch.float64)

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        result: Tensor = block(x)
        return result

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    block.eval()
    assert torch.equal(run(1), run(2))


@pytest.mark.parametrize("name", BLOCKS)
def test_every_parameter_has_a_gradient(name: str) -> None:
    block = block_of(name).eval()
    block(torch.randn(2, L, D, dtype=torch.float64)).pow(2).sum().backward()
    for label, parameter in block.named_parameters():
        assert parameter.grad is not None, label
        assert float(parameter.grad.abs().sum()) > 0, label
