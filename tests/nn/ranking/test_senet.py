"""SENet: equals its formula, and the effects of its two gates on a field."""

from __future__ import annotations

import torch

from nextitem.nn.ranking.senet import SENet


def test_gates_equal_their_formula() -> None:
    torch.manual_seed(0)
    gate, fields = SENet(7), torch.randn(4, 7, 5)
    assert gate.squeeze.weight.shape == (2, 7)  # reduction 3
    for row in range(4):
        z = torch.stack([fields[row, f].mean() for f in range(7)])
        a = torch.relu(gate.excite.weight @ torch.relu(gate.squeeze.weight @ z))
        torch.testing.assert_close(gate(fields)[row], torch.stack([a[f] * fields[row, f] for f in range(7)]))


def test_only_the_relu_gate_can_set_fields_to_zero() -> None:
    gate, fields = SENet(4, gate="sigmoid"), torch.randn(3, 4, 2)
    with torch.no_grad():
        gate.excite.weight.zero_()
    torch.testing.assert_close(gate(fields), fields)
    paper = SENet(4)
    with torch.no_grad():
        paper.excite.weight.fill_(-1)
    assert not paper(fields).any()


def test_there_is_at_least_one_inner_unit() -> None:
    assert SENet(2)(torch.randn(3, 2, 4)).shape == (3, 2, 4)
