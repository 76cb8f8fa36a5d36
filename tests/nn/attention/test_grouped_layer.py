"""The layer of MTGR: normalisation by group equals LayerNorm with tied weights, and the layer its formulas."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from nextitem.nn.attention.grouped_layer import GroupedLayer, GroupLayerNorm
from nextitem.nn.attention.stream import read_candidates, read_stream
from nextitem.ops.hstu_attention import Layout


def test_with_tied_weights_it_is_layer_norm() -> None:
    torch.manual_seed(0)
    tokens, groups = torch.randn(9, 6), torch.arange(9) % 4
    expected, norm = nn.LayerNorm(6), GroupLayerNorm(6, groups=4)
    with torch.no_grad():
        expected.weight.normal_()
        expected.bias.normal_()
        norm.weight.copy_(expected.weight.expand(4, 6))
        norm.bias.copy_(expected.bias.expand(4, 6))
        torch.testing.assert_close(norm(tokens, groups), expected(tokens))
        norm.weight[2] += 1
        changed = norm(tokens, groups)
    is_changed = (changed != expected(tokens)).any(1)
    torch.testing.assert_close(changed[groups != 2], expected(tokens)[groups != 2])
    assert bool(is_changed[groups == 2].all())
    assert len(list(GroupLayerNorm(6, groups=1).parameters())) == 2
    torch.testing.assert_close(GroupLayerNorm(6, groups=1)(tokens, groups), F.layer_norm(tokens, (6,)))


def test_one_candidate_without_history_has_the_state_of_the_formula() -> None:
    """A candidate alone attends to itself: X + MLP(GroupLN(SiLU(q k) / N v * u))."""
    torch.manual_seed(0)
    layer = GroupedLayer(4, heads=1, head_width=3, normaliser=7.0, groups=2, dropout=0.0)
    x, groups = torch.randn(1, 4), torch.tensor([1])
    empty = torch.tensor([0, 0])
    cache = read_stream([layer], torch.zeros(0, 4), Layout(empty), groups=groups[:0])
    layout = Layout(empty, torch.tensor([0, 1]), visible_keys=torch.tensor([0]))
    with torch.no_grad():
        state = read_candidates([layer], x, cache, layout, groups=groups)
        u, v, q, k = F.silu(layer.projection(F.layer_norm(x, (4,)))).chunk(4, 1)
        mixed = F.silu((q * k).sum()) / 7.0 * v * u
        scale = (mixed - mixed.mean()).square().mean().sqrt()
        expected = x + layer.output((mixed - mixed.mean()) / (scale**2 + 1e-10).sqrt())
    torch.testing.assert_close(state, expected)
