"""T5's layers against the transformers library's and against plain definitions."""

from __future__ import annotations

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from nextitem.nn.attention.t5 import (
    DecoderLayer,
    EncoderLayer,
    FeedForward,
    RelativePositionBias,
    T5CrossAttention,
    T5SelfAttention,
)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_are_the_published_ones(bidirectional: bool) -> None:
    layer = RelativePositionBias(1, bidirectional=bidirectional)
    with torch.no_grad():
        layer.weight.weight[:, 0] = torch.arange(32)
    ours = layer(torch.tensor([300]), torch.arange(601))[0, 0]
    theirs = T5Attention._relative_position_bucket(
        torch.arange(-300, 301), bidirectional=bidirectional, num_buckets=32, max_distance=128
    )
    assert ours.long().tolist() == theirs.tolist()


def test_a_bias_depends_on_the_distance_and_its_sign() -> None:
    torch.manual_seed(0)
    bias = RelativePositionBias(3, bidirectional=True)(torch.arange(6), torch.arange(6))
    assert bias.shape == (3, 6, 6)
    for shift in range(-5, 6):
        diagonal = bias.diagonal(shift, 1, 2)
        assert bool((diagonal == diagonal[:, :1]).all())
    assert not torch.allclose(bias, bias.transpose(1, 2))


@torch.no_grad()
def test_attention_has_no_scale_and_obeys_its_bias() -> None:
    torch.manual_seed(0)
    layer = T5CrossAttention(8, heads=2, head_width=4, dropout=0.0)
    target, source = torch.randn(3, 5, 8), torch.randn(3, 7, 8)
    bias = torch.randn(1, 2, 5, 7)
    bias[..., 6] = -torch.inf
    query = layer.query(target).view(3, 5, 2, 4)
    key, value = layer.key_value(source).view(3, 7, 2, 2, 4).unbind(2)
    weights = (torch.einsum("bshe,blhe->bhsl", query, key) + bias).softmax(-1)
    expected = layer.output(torch.einsum("bhsl,blhe->bshe", weights, value).flatten(2))
    found = layer(target, layer.keys_values(source), bias)
    torch.testing.assert_close(found, expected)
    source[:, 6] = 100.0
    torch.testing.assert_close(layer(target, layer.keys_values(source), bias), found)


@torch.no_grad()
def test_self_attention_is_attention_to_itself() -> None:
    torch.manual_seed(0)
    own = T5SelfAttention(8, heads=2, head_width=4, dropout=0.0)
    cross = T5CrossAttention(8, heads=2, head_width=4, dropout=0.0)
    cross.query.weight.copy_(own.query_key_value.weight[:8])
    cross.key_value.weight.copy_(own.query_key_value.weight[8:])
    cross.output.weight.copy_(own.output.weight)
    hidden, bias = torch.randn(3, 5, 8), torch.randn(1, 2, 5, 5)
    torch.testing.assert_close(own(hidden, bias), cross(hidden, cross.keys_values(hidden), bias))


@torch.no_grad()
def test_steps_of_beams_equal_whole_sequences() -> None:
    """Two beams share their first position, then part; each hidden state is that of its own whole sequence."""
    torch.manual_seed(0)
    layer = DecoderLayer(8, heads=2, head_width=4, inner=16, hidden_layers=1, dropout=0.0)
    source, cross_bias = torch.randn(3, 7, 8), torch.randn(3, 1, 1, 7)
    cross = layer.cross.keys_values(source)
    first, second = torch.randn(3, 1, 8), torch.randn(3, 2, 8)
    causal = torch.randn(1, 2, 2, 2).masked_fill(torch.tensor([[False, True], [False, False]]), -torch.inf)
    along = causal[0, :, 1]  # [H, 2]: what the second position adds to the first and to itself
    outside = torch.full((3, 2), -torch.inf)
    tree = torch.stack([torch.stack([row[0], row[1], outside[0, 0]]) for row in along])
    other = torch.stack([torch.stack([row[0], outside[0, 0], row[1]]) for row in along])
    bias = torch.stack([tree, other], dim=1)[None].expand(3, -1, -1, -1)
    alone = causal[:, :, :1, :1].expand(3, -1, -1, -1).flatten(0, 1)
    start, known = layer.step(first.flatten(0, 1), cross, None, bias=alone, cross_bias=cross_bias)
    found, known = layer.step(second.flatten(0, 1), cross, known, bias=bias.flatten(0, 1), cross_bias=cross_bias)
    assert known.shape == (2, 3 * 2, 3, 4)
    start, found = start.view(3, 1, 8), found.view(3, 2, 8)
    for beam in (0, 1):
        whole = layer(torch.cat([first, second[:, beam : beam + 1]], 1), cross, bias=causal, cross_bias=cross_bias)
        torch.testing.assert_close(start[:, 0], whole[:, 0])
        torch.testing.assert_close(found[:, beam], whole[:, 1])


@pytest.mark.parametrize("hidden_layers", [1, 2])
def test_feed_forward_has_the_hidden_layers_that_it_is_told(hidden_layers: int) -> None:
    block = FeedForward(6, inner=10, hidden_layers=hidden_layers, dropout=0.0)
    weights = [layer.get_parameter("weight") for layer in block.layers]
    shapes = [tuple(weight.shape) for weight in weights]
    assert shapes == [(10, 6), *[(10, 10)] * (hidden_layers - 1), (6, 10)]
    x = torch.randn(2, 6)
    expected = x
    for weight in weights[:-1]:
        expected = (expected @ weight.T).clamp(min=0)
    torch.testing.assert_close(block(x), expected @ weights[-1].T)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    layer = EncoderLayer(8, heads=2, head_width=4, inner=16, hidden_layers=1, dropout=0.5)
    hidden, bias = torch.randn(2, 3, 8), torch.zeros(1, 1, 1, 3)
    assert not torch.equal(layer(hidden, bias), layer(hidden, bias))
    layer.eval()
    assert torch.equal(layer(hidden, bias), layer(hidden, bias))
