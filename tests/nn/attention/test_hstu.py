"""The HSTU layer against its equations, token by token."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from nextitem.nn.attention.hstu import HSTULayer
from nextitem.ops.hstu_attention import Layout

DAY = 86_400_000


def layer_of(*, heads: int = 2, dropout: float = 0.0) -> HSTULayer:
    torch.manual_seed(0)
    layer = HSTULayer(6, heads=heads, head_width=4, longest=5, dropout=dropout)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape))
    return layer.double()


def by_hand(layer: HSTULayer, hidden: Tensor, asked: list[int], happened: list[int]) -> Tensor:
    """One sequence, as the paper's equations and the authors' order of U, V, Q, K have it."""
    normed = (hidden - hidden.mean(1, keepdim=True)) / (hidden.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    u, v, q, k = F.silu(normed @ layer.project.weight.T).split(8, dim=1)
    mixed = torch.zeros(len(hidden), 8, dtype=torch.float64)
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        for i in range(len(hidden)):
            for j in range(i + 1):
                seconds = (asked[i] - happened[j]) / 1000
                bucket = min(128, max(0, math.floor(math.log(max(1.0, seconds)) / 0.301)))
                bias = layer.position_weights[5 - 1 + j - i] + layer.time_weights[bucket]
                mixed[i, part] += F.silu(q[i, part] @ k[j, part] + bias) / 5 * v[j, part]
    mixed = (mixed - mixed.mean(1, keepdim=True)) / (mixed.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    out: Tensor = (u * mixed) @ layer.output.weight.T + layer.output.bias + hidden
    return out


def test_it_is_its_equations() -> None:
    layer = layer_of()
    hidden = torch.randn(7, 6, dtype=torch.float64)
    happened = [0, DAY, DAY, 0, 3000, 40 * DAY, 41 * DAY]
    asked = [DAY, DAY, 9 * DAY, 3000, 40 * DAY, 41 * DAY, 41 * DAY]
    layout = Layout(torch.tensor([0, 3, 7]), None, torch.tensor(asked), torch.tensor(happened))
    found, _, _ = layer(hidden, layout)
    expected = [by_hand(layer, hidden[part], asked[part], happened[part]) for part in (slice(0, 3), slice(3, 7))]
    torch.testing.assert_close(found, torch.cat(expected))


def test_a_normed_residual_takes_the_place_of_what_is_read() -> None:
    layer = layer_of()
    hidden, layout = torch.randn(3, 6, dtype=torch.float64), Layout(torch.tensor([0, 3]))
    published, _, _ = layer(hidden, layout)
    layer.normed_residual = True
    found, _, _ = layer(hidden, layout)
    torch.testing.assert_close(found - F.layer_norm(hidden, (6,), eps=1e-6), published - hidden)


def test_it_has_the_published_parameters_and_no_other() -> None:
    """One projection without bias, one with, two bias tables of the layer's own; no norm has weights."""
    layer = HSTULayer(6, heads=2, head_width=4, longest=5, dropout=0.0)
    sizes = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
    assert sizes == {
        "project.weight": (32, 6),
        "output.weight": (6, 8),
        "output.bias": (6,),
        "position_weights": (9,),
        "time_weights": (129,),
    }


def test_an_undated_layout_leaves_the_time_bias_out() -> None:
    layer = layer_of()
    hidden = torch.randn(3, 6, dtype=torch.float64)
    undated, _, _ = layer(hidden, Layout(torch.tensor([0, 3])))
    with torch.no_grad():
        layer.time_weights.zero_()
    times = torch.tensor([0, DAY, 5 * DAY])
    torch.testing.assert_close(undated, layer(hidden, Layout(torch.tensor([0, 3]), None, times, times))[0])
