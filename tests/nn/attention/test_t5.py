"""Layers of T5 against those of the transformers library and against plain definitions."""

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
def test_position_buckets_equal_those_of_transformers(bidirectional: bool) -> None:
    layer = RelativePositionBias(1, bidirectional=bidirectional)
    with torch.no_grad():
        layer.weight.weight[:, 0] = torch.arange(32)
    ours = layer(torch.tensor([300]), torch.arange(601))[0, 0]
    theirs = T5Attention._relative_position_bucket(
        torch.arange(-300, 301), bidirectional=bidirectional, num_buckets=32, max_distance=128
    )
    assert ours.long().tolist() == theirs.tolist()


def test_position_bias_depends_only_on_the_signed_distance() -> None:
    torch.manual_seed(0)
    bias = RelativePositionBias(3, bidirectional=True)(torch.arange(6), torch.arange(6))
    assert bias.shape == (3, 6, 6)
    for shift in range(-5, 6):
        diagonal = bias.diagonal(shift, 1, 2)
        assert bool((diagonal == diagonal[:, :1]).all())
    assert not torch.allclose(bias, bias.transpose(1, 2))


@torch.no_grad()
def test_cross_attention_has_no_scale_and_adds_its_bias() -> None:
    torch.manual_seed(0)
    layer = T5CrossAttention(8, heads=2, head_width=4, dropout=0.0)
    target, source = torch.randn(3, 5, 8), torch.randn(3, 7, 8)
    bias = torch.randn(1, 2, 5, 7)
    bias[..., 6] = -torch.inf
    query = layer.query(target).view(3, 5, 2, 4)
    key, value = layer.key_value(source).view(3, 7, 2, 2, 4).unbind(2)
    weights = (torch.einsum("bshe,blhe->bhsl", query, key) + bias).softmax(-1)
    expected = layer.output(torch.einsum("bhsl,blhe->bshe", weights, value).flatten(2))
    output = layer(target, layer.keys_values(source), bias)
    torch.testing.assert_close(output, expected)
    source[:, 6] = 100.0
    torch.testing.assert_close(layer(target, layer.keys_values(source), bias), output)


@torch.no_grad()
def test_self_attention_equals_cross_attention_to_the_same_sequence() -> None:
    torch.manual_seed(0)
    self_attention = T5SelfAttention(8, heads=2, head_width=4, dropout=0.0)
    cross_attention = T5CrossAttention(8, heads=2, head_width=4, dropout=0.0)
    cross_attention.query.weight.copy_(self_attention.query_key_value.weight[:8])
    cross_attention.key_value.weight.copy_(self_attention.query_key_value.weight[8:])
    cross_attention.output.weight.copy_(self_attention.output.weight)
    hidden, bias = torch.randn(3, 5, 8), torch.randn(1, 2, 5, 5)
    torch.testing.assert_close(
        self_attention(hidden, bias), cross_attention(hidden, cross_attention.keys_values(hidden), bias)
    )


@torch.no_grad()
def test_several_sequences_of_a_request_read_its_keys_as_if_they_were_repeated() -> None:
    torch.manual_seed(0)
    layer = DecoderLayer(8, heads=2, head_width=4, inner=16, hidden_layers=1, dropout=0.0)
    keys_values = layer.cross.keys_values(torch.randn(3, 7, 8))
    cross_bias, bias = torch.randn(3, 1, 1, 7), torch.randn(1, 2, 4, 4)
    hidden = torch.randn(3 * 5, 4, 8)
    repeated = (keys_values[0].repeat_interleave(5, 0), keys_values[1].repeat_interleave(5, 0))
    expected = layer(hidden, repeated, bias=bias, cross_bias=cross_bias.repeat_interleave(5, 0))
    torch.testing.assert_close(layer(hidden, keys_values, bias=bias, cross_bias=cross_bias), expected)


@torch.no_grad()
def test_stepwise_decoding_of_beams_equals_whole_sequences() -> None:
    """Two beams share their first position and differ in the second one.

    Each hidden state equals that of the whole sequence of its beam.
    """
    torch.manual_seed(0)
    layer = DecoderLayer(8, heads=2, head_width=4, inner=16, hidden_layers=1, dropout=0.0)
    source, cross_bias = torch.randn(3, 7, 8), torch.randn(3, 1, 1, 7)
    cross_keys_values = layer.cross.keys_values(source)
    first, second = torch.randn(3, 1, 8), torch.randn(3, 2, 8)
    causal = torch.randn(1, 2, 2, 2).masked_fill(torch.tensor([[False, True], [False, False]]), -torch.inf)
    second_bias = causal[0, :, 1]  # [H, 2]: biases of the second position towards the first one and itself
    masked = torch.tensor(-torch.inf)
    beam_0 = torch.stack([torch.stack([row[0], row[1], masked]) for row in second_bias])
    beam_1 = torch.stack([torch.stack([row[0], masked, row[1]]) for row in second_bias])
    bias = torch.stack([beam_0, beam_1], dim=1)[None].expand(3, -1, -1, -1)
    first_bias = causal[:, :, :1, :1].expand(3, -1, -1, -1).flatten(0, 1)
    start, keys_values = layer.step(
        first.flatten(0, 1), cross_keys_values, None, bias=first_bias, cross_bias=cross_bias
    )
    output, keys_values = layer.step(
        second.flatten(0, 1), cross_keys_values, keys_values, bias=bias.flatten(0, 1), cross_bias=cross_bias
    )
    assert keys_values.shape == (2, 3 * 2, 3, 4)
    start, output = start.view(3, 1, 8), output.view(3, 2, 8)
    for beam in (0, 1):
        whole = layer(
            torch.cat([first, second[:, beam : beam + 1]], 1), cross_keys_values, bias=causal, cross_bias=cross_bias
        )
        torch.testing.assert_close(start[:, 0], whole[:, 0])
        torch.testing.assert_close(output[:, beam], whole[:, 1])


@pytest.mark.parametrize("hidden_layers", [1, 2])
def test_feed_forward_has_the_configured_number_of_hidden_layers(hidden_layers: int) -> None:
    block = FeedForward(6, inner=10, hidden_layers=hidden_layers, dropout=0.0)
    weights = [layer.get_parameter("weight") for layer in block.layers]
    shapes = [tuple(weight.shape) for weight in weights]
    assert shapes == [(10, 6), *[(10, 10)] * (hidden_layers - 1), (6, 10)]
    x = torch.randn(2, 6)
    expected = x
    for weight in weights[:-1]:
        expected = (expected @ weight.T).clamp(min=0)
    torch.testing.assert_close(block(x), expected @ weights[-1].T)


def test_dropout_is_active_only_in_training() -> None:
    torch.manual_seed(0)
    layer = EncoderLayer(8, heads=2, head_width=4, inner=16, hidden_layers=1, dropout=0.5)
    hidden, bias = torch.randn(2, 3, 8), torch.zeros(1, 1, 1, 3)
    assert not torch.equal(layer(hidden, bias), layer(hidden, bias))
    layer.eval()
    assert torch.equal(layer(hidden, bias), layer(hidden, bias))
