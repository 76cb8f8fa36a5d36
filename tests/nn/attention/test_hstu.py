"""HSTU layer: equals its equations token by token, parameters, layouts without times."""

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
    layer = HSTULayer(6, heads=heads, head_width=4, max_length=5, dropout=dropout)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape))
    return layer.double()


def layer_by_the_paper(layer: HSTULayer, hidden: Tensor, query_times: list[int], key_times: list[int]) -> Tensor:
    """Return the output of a layer for one sequence by the paper's equations, with the authors' order of U, V, Q, K."""
    normed = (hidden - hidden.mean(1, keepdim=True)) / (hidden.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    u, v, q, k = F.silu(normed @ layer.project.weight.T).split(8, dim=1)
    mixed = torch.zeros(len(hidden), 8, dtype=torch.float64)
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        for i in range(len(hidden)):
            for j in range(i + 1):
                seconds = (query_times[i] - key_times[j]) / 1000
                bucket = min(128, max(0, math.floor(math.log(max(1.0, seconds)) / 0.301)))
                bias = layer.position_weights[5 - 1 + j - i] + layer.time_weights[bucket]
                mixed[i, part] += F.silu(q[i, part] @ k[j, part] + bias) / 5 * v[j, part]
    mixed = (mixed - mixed.mean(1, keepdim=True)) / (mixed.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    out: Tensor = (u * mixed) @ layer.output.weight.T + layer.output.bias + hidden
    return out


def test_layer_equals_the_equations_of_the_paper() -> None:
    layer = layer_of()
    hidden = torch.randn(7, 6, dtype=torch.float64)
    key_times = [0, DAY, DAY, 0, 3000, 40 * DAY, 41 * DAY]
    query_times = [DAY, DAY, 9 * DAY, 3000, 40 * DAY, 41 * DAY, 41 * DAY]
    layout = Layout(torch.tensor([0, 3, 7]), None, torch.tensor(query_times), torch.tensor(key_times))
    output, _, _ = layer(hidden, layout)
    expected = [
        layer_by_the_paper(layer, hidden[part], query_times[part], key_times[part])
        for part in (slice(0, 3), slice(3, 7))
    ]
    torch.testing.assert_close(output, torch.cat(expected))


def test_normed_residual_replaces_the_input_in_the_residual() -> None:
    layer = layer_of()
    hidden, layout = torch.randn(3, 6, dtype=torch.float64), Layout(torch.tensor([0, 3]))
    published, _, _ = layer(hidden, layout)
    layer.normed_residual = True
    output, _, _ = layer(hidden, layout)
    torch.testing.assert_close(output - F.layer_norm(hidden, (6,), eps=1e-6), published - hidden)


def test_layer_has_exactly_the_published_parameters() -> None:
    """One projection has no bias, one has; each layer has two bias tables; no norm has weights."""
    layer = HSTULayer(6, heads=2, head_width=4, max_length=5, dropout=0.0)
    sizes = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
    assert sizes == {
        "project.weight": (32, 6),
        "output.weight": (6, 8),
        "output.bias": (6,),
        "position_weights": (9,),
        "time_weights": (129,),
    }


def test_layout_without_times_uses_no_time_bias() -> None:
    layer = layer_of()
    hidden = torch.randn(3, 6, dtype=torch.float64)
    without_times, _, _ = layer(hidden, Layout(torch.tensor([0, 3])))
    with torch.no_grad():
        layer.time_weights.zero_()
    times = torch.tensor([0, DAY, 5 * DAY])
    torch.testing.assert_close(without_times, layer(hidden, Layout(torch.tensor([0, 3]), None, times, times))[0])
