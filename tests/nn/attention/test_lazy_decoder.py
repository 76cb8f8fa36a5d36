"""The lazy decoder against plain loops over positions, heads and tokens; what it costs, and what it does not have."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nextitem.core.config import parse
from nextitem.core.errors import UserError
from nextitem.nn.attention.lazy_decoder import LazyDecoder, LazyDecoderConfig, LazyLayer
from nextitem.nn.attention.t5 import EncoderLayer
from nextitem.nn.experts import ExpertsConfig

VARIANTS: list[dict[str, Any]] = [
    {},
    {"kv_heads": 2},
    {"kv_heads": 1, "separate_values": True},
    {"kv_layers": 2},
    {"kv_layers": 3, "separate_values": True},
]


def decoder_of(**settings: Any) -> LazyDecoder:
    torch.manual_seed(2)
    decoder = LazyDecoder(LazyDecoderConfig(**{"width": 16, "layers": 3, "heads": 4, "ff_width": 24, **settings}))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return decoder.eval()


def rms(vector: Tensor, weight: Tensor) -> Tensor:
    return vector / (vector.square().mean() + 1e-6).sqrt() * weight


def attention(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Return the mean of the values by the softmax of products with the query, all of one head."""
    weights = torch.stack([query @ key for key in keys]).div(math.sqrt(len(query))).softmax(0)
    return torch.stack([weight * value for weight, value in zip(weights, values, strict=True)]).sum(0)


def reference(decoder: LazyDecoder, inputs_nD: Tensor, tokens_LD: Tensor, config: LazyDecoderConfig) -> Tensor:
    """Return the hidden states of one sequence of one request, [n, D], token by token and head by head."""
    G, S, d = config.kv_heads or config.heads, 1 + config.separate_values, config.width // config.heads
    context: list[list[Tensor]] = []  # for each chunk the normed features of all tokens
    for chunk, norm in enumerate(decoder.processor.norms):
        rows = slice(chunk * G * d, (chunk + 1) * G * d)
        projection = decoder.processor.projection.weight[rows]
        context.append([rms(projection @ token, cast(nn.RMSNorm, norm).weight) for token in tokens_LD])
    hidden = list(inputs_nD)
    for number, each in enumerate(decoder.layers):
        layer = cast(LazyLayer, each)
        kv = math.floor(number * config.kv_layers / config.layers)
        keys, values = context[kv * S], context[kv * S + S - 1]
        for place, vector in enumerate(hidden):
            query, parts = layer.cross_query(rms(vector, layer.norm_cross.weight)), []
            for head in range(config.heads):
                group = head // (config.heads // G)
                of_group = slice(group * d, (group + 1) * d)
                parts.append(
                    attention(
                        query[head * d : (head + 1) * d], [k[of_group] for k in keys], [v[of_group] for v in values]
                    )
                )
            hidden[place] = vector + layer.cross_output(torch.cat(parts))
        projected = [
            layer.query_key_value(rms(vector, layer.norm_self.weight)).split(config.width) for vector in hidden
        ]
        for place in range(len(hidden)):
            parts = []
            for head in range(config.heads):
                of_head = slice(head * d, (head + 1) * d)
                earlier = projected[: place + 1]
                parts.append(
                    attention(
                        projected[place][0][of_head],
                        [k[of_head] for _, k, _ in earlier],
                        [v[of_head] for _, _, v in earlier],
                    )
                )
            hidden[place] = hidden[place] + layer.output(torch.cat(parts))
        hidden = [vector + layer.feed(rms(vector, layer.norm_feed.weight)) for vector in hidden]
    return torch.stack(hidden)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_it_equals_the_reference_for_every_request_sequence_and_position(settings: dict[str, Any]) -> None:
    """Two requests of 5 and 3 tokens, three sequences of two positions each."""
    decoder, generator = decoder_of(**settings), torch.Generator().manual_seed(1)
    inputs, tokens = torch.randn(2, 3, 2, 16, generator=generator), torch.randn(2, 5, 16, generator=generator)
    is_real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    config = LazyDecoderConfig(**{"width": 16, "layers": 3, "heads": 4, "ff_width": 24, **settings})
    with torch.no_grad():
        hidden, _ = decoder(inputs, decoder.read(tokens), mask=is_real[:, None, None])
        for request, length in enumerate((5, 3)):
            for sequence in range(3):
                expected = reference(decoder, inputs[request, sequence], tokens[request, :length], config)
                torch.testing.assert_close(hidden[request, sequence], expected, atol=1e-5, rtol=1e-5)


def test_positions_one_by_one_equal_all_at_once() -> None:
    decoder, generator = decoder_of(kv_heads=2), torch.Generator().manual_seed(3)
    inputs, context = torch.randn(2, 3, 4, 16, generator=generator), decoder.read(torch.randn(2, 6, 16))
    with torch.no_grad():
        expected, all_past = decoder(inputs, context)
        first, past = decoder(inputs[:, :, :1], context)
        steps = [first]
        for place in range(1, 3):
            hidden, past = decoder(inputs[:, :, place : place + 1], context, past=past)
            steps.append(hidden)
        steps.append(decoder(inputs[:, :, 3:], context, past=past)[0])
        torch.testing.assert_close(torch.cat(steps, 2), expected)
        two, past = decoder(inputs[:, :, :2], context)
        rest, past = decoder(inputs[:, :, 2:], context, past=past)  # several positions after several
        torch.testing.assert_close(torch.cat([two, rest], 2), expected)
        torch.testing.assert_close(past, all_past)


def test_sequences_that_are_not_real_pass_no_feed_forward_network_and_change_no_other() -> None:
    decoder = decoder_of(experts=ExpertsConfig(num_experts=4, top_k=2), dense_layers=1)
    inputs, context = torch.randn(2, 3, 2, 16), decoder.read(torch.randn(2, 6, 16))
    is_real = torch.tensor([[True, True, False], [True, False, False]])
    seen: list[int] = []
    for layer in decoder.layers:
        cast(LazyLayer, layer).feed.register_forward_pre_hook(lambda _, args: seen.append(args[0].numel() // 16))
    with torch.no_grad():
        expected, _ = decoder(inputs, context)
        hidden, _ = decoder(inputs, context, is_real=is_real)
    assert seen == [12] * 3 + [6] * 3
    torch.testing.assert_close(hidden[is_real], expected[is_real])
    kinds = [type(cast(LazyLayer, layer).feed).__name__ for layer in decoder.layers]
    assert kinds == ["FeedForward", "Experts", "Experts"]


def test_cross_attention_has_no_projection_of_keys_and_values() -> None:
    """The only matrices that read the context are those of the processor: one, whatever the number of layers."""
    decoder = decoder_of(layers=3, kv_layers=1)
    matrices = {name: tuple(weight.shape) for name, weight in decoder.named_parameters() if weight.dim() == 2}
    of_cross = {name.split(".")[2] for name in matrices if "cross" in name}
    assert of_cross == {"cross_query", "cross_output"}
    assert [shape for name, shape in matrices.items() if "processor" in name] == [(16, 16)]
    per_layer = sum(math.prod(shape) for name, shape in matrices.items() if name.startswith("layers.0"))
    assert per_layer == (2 + 4) * 16 * 16 + 2 * 16 * 24  # query and output; self-attention; feed-forward
    assert decoder_of(kv_heads=1, kv_layers=3, separate_values=True).processor.projection.weight.shape == (
        2 * 3 * 4,
        16,
    )


def flops(work: Any) -> int:
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def test_operations_of_the_layers_are_nearly_independent_of_the_length_of_the_context() -> None:
    width, layers = 512, 2
    config = LazyDecoderConfig(width=width, layers=layers, heads=4, ff_width=4 * width)
    with torch.device("meta"), torch.no_grad():
        decoder = LazyDecoder(config).eval()
        encoder = EncoderLayer(width, heads=4, head_width=128, inner=4 * width, hidden_layers=1, dropout=0.0).eval()
        inputs = torch.empty(1, 1, 3, width)
        counts, of_encoder = {}, {}
        for length in (64, 512):
            tokens = torch.empty(1, length, width)
            context = decoder.read(tokens)
            counts[length] = flops(lambda context=context: decoder(inputs, context))
            of_encoder[length] = layers * flops(lambda tokens=tokens: encoder(tokens, torch.zeros(1, 1, 1, 1)))
    constant = layers * 3 * 2 * (2 + 4 + 8) * width**2
    assert counts[64] == constant + layers * 3 * 4 * 64 * width
    assert counts[512] == constant + layers * 3 * 4 * 512 * width
    assert counts[512] / counts[64] < 1.15
    assert of_encoder[512] / of_encoder[64] > 8
    assert of_encoder[512] > 100 * counts[512]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "heads = 3 must divide width = 64"),
        ({"kv_heads": 3}, "kv_heads = 3 must divide heads = 4"),
        ({"kv_layers": 3}, "kv_layers = 3 is more than layers = 2"),
    ],
)
def test_sizes_that_do_not_fit_are_explained(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(LazyDecoderConfig, settings, where="[model]")


@pytest.mark.parametrize("settings", [{}, {"kv_layers": 2, "separate_values": True}, {"kv_heads": 2}], ids=str)
def test_it_can_start_by_reading_the_mean_of_the_context(settings: dict[str, Any]) -> None:
    """With equal attention a layer adds the mean of the normed tokens: of all features, or of those of fewer heads."""
    decoder = LazyDecoder(LazyDecoderConfig(**{"width": 16, "layers": 2, "heads": 4, **settings}))
    decoder.start_as_mean()
    layer = cast(LazyLayer, decoder.layers[1])
    with torch.no_grad():
        layer.cross_query.weight.zero_()
        tokens, inputs = torch.randn(1, 5, 16), torch.randn(1, 1, 1, 16)
        context = decoder.read(tokens)[:, -1]
        read = layer._read_context(inputs, context, None)[0, 0, 0]
    num_features = 4 * (settings.get("kv_heads") or 4)
    normed = tokens[0, :, :num_features]
    expected = (normed / (normed.square().mean(1, keepdim=True) + 1e-6).sqrt()).mean(0)
    if num_features == 16:
        torch.testing.assert_close(read, expected)
    else:  # each head of keys serves two of queries
        torch.testing.assert_close(read, expected.view(2, 4).repeat_interleave(2, dim=0).flatten())
