"""Target and cross attention against plain loops and torch's attention, and their treatment of padding."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from nextitem.nn.attention import target_attention
from nextitem.nn.attention.cross_attention import CrossAttention
from nextitem.nn.attention.target_attention import MultiHeadTargetAttention, TargetAttention

D = 6
LENGTHS = torch.tensor([4, 0, 7, 1])
REQUEST = torch.tensor([0, 0, 1, 2, 2, 2, 3])


def random_queries_and_keys(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(len(REQUEST), D, generator=generator, dtype=torch.float64),
        torch.randn(4, 7, D, generator=generator, dtype=torch.float64),
    )


@pytest.mark.parametrize("normalise", [False, True])
def test_target_attention_equals_a_loop_over_candidates_and_items(normalise: bool) -> None:
    torch.manual_seed(0)
    attention = TargetAttention(D, normalise=normalise).double()
    queries, keys = random_queries_and_keys()
    unit = attention.unit
    assert (unit.first.out_features, unit.second.out_features, unit.last.out_features) == (80, 40, 1)
    output = attention(queries, keys, LENGTHS, REQUEST)
    for p, q in enumerate(queries):
        history = keys[REQUEST[p], : LENGTHS[REQUEST[p]]]
        weights = []
        for k in history:
            hidden = torch.sigmoid(unit.first(torch.cat([q, k, q - k, q * k])))
            weights.append(unit.last(torch.sigmoid(unit.second(hidden)))[0])
        expected = torch.zeros(D, dtype=torch.float64)
        if weights:
            w = torch.stack(weights)
            w = torch.softmax(w / math.sqrt(D), 0) if normalise else w
            expected = sum((a * k for a, k in zip(w, history, strict=True)), expected)
        torch.testing.assert_close(output[p], expected)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("entries", [target_attention.PAIR_ENTRIES, 400])
def test_attention_request_by_request_equals_that_of_all_pairs(
    normalise: bool, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_attention, "PAIR_ENTRIES", entries)  # 400: blocks of one and of several candidates
    torch.manual_seed(0)
    attention = TargetAttention(D, normalise=normalise).double()
    queries, keys = random_queries_and_keys()
    expected = attention(queries, keys, LENGTHS, REQUEST)
    with torch.inference_mode():
        torch.testing.assert_close(attention(queries, keys, LENGTHS, REQUEST), expected)
        alone = attention(queries[3:6], keys[2:3], LENGTHS[2:3], torch.zeros(3, dtype=torch.int64))
        torch.testing.assert_close(alone, expected[3:6])


@pytest.mark.parametrize("normalise", [False, True])
def test_padding_has_no_effect_and_no_gradient(normalise: bool) -> None:
    torch.manual_seed(0)
    attention = TargetAttention(D, normalise=normalise).double()
    queries, keys = random_queries_and_keys()
    is_padding = torch.arange(7) >= LENGTHS[:, None]
    keys.requires_grad_()
    output = attention(queries, keys, LENGTHS, REQUEST)
    output.sum().backward()
    assert keys.grad is not None
    assert not keys.grad[is_padding].any()
    other = torch.where(is_padding[..., None], torch.full_like(keys, 9.0), keys)
    torch.testing.assert_close(attention(queries, other, LENGTHS, REQUEST), output)


def test_multi_head_target_attention_equals_that_of_torch() -> None:
    torch.manual_seed(0)
    attention = MultiHeadTargetAttention(D, key_width=4, heads=2).double()
    queries, keys = random_queries_and_keys()[0], torch.randn(len(REQUEST), 5, 4, dtype=torch.float64)
    is_real = torch.rand(len(REQUEST), 5) < 0.6
    is_real[:, 0] = True
    is_real[2] = False
    output = attention(queries, keys, is_real)
    assert not output[2].any()
    rows = is_real.any(1)
    key, value = attention.key_value(keys).chunk(2, -1)
    expected, _ = F.multi_head_attention_forward(
        attention.query(queries)[None],
        key.transpose(0, 1),
        value.transpose(0, 1),
        embed_dim_to_check=D,
        num_heads=2,
        key_padding_mask=~is_real,
        in_proj_weight=None,
        in_proj_bias=torch.zeros(3 * D, dtype=torch.float64),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=attention.output.weight,
        out_proj_bias=None,
        use_separate_proj_weight=True,
        q_proj_weight=torch.eye(D, dtype=torch.float64),
        k_proj_weight=torch.eye(D, dtype=torch.float64),
        v_proj_weight=torch.eye(D, dtype=torch.float64),
    )
    torch.testing.assert_close(output[rows], expected[0][rows])


def test_cross_attention_ignores_padding_of_the_other_sequence() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(D, heads=2).double()
    hidden, other = torch.randn(3, 4, D, dtype=torch.float64), torch.randn(3, 5, D, dtype=torch.float64)
    lengths = torch.tensor([5, 2, 0])
    output = attention(hidden, other, lengths)
    torch.testing.assert_close(output[2], hidden[2])
    torch.testing.assert_close(attention(hidden[1:2], other[1:2, :2], torch.tensor([2]))[0], output[1])
    shuffled = attention(hidden[:1], other[:1, [3, 1, 4, 0, 2]], lengths[:1])
    torch.testing.assert_close(shuffled[0], output[0])
    single = attention(hidden[:1], other[:1, :1], torch.tensor([1]))  # with one key, every event gets its value
    value = attention.key_value(other[0, 0])[D:]
    torch.testing.assert_close(single[0] - hidden[0], attention.output(value).expand(4, D))
