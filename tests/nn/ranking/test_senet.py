"""SENet by its formula, and what its two gates do to a field."""

from __future__ import annotations

import torch

from nextitem.nn.ranking.senet import SENet


def test_it_is_its_formula() -> None:
    torch.manual_seed(0)
    gate, fields = SENet(7), torch.randn(4, 7, 5)
    assert gate.squeeze.weight.shape == (2, 7)  # reduction 3
    for row in range(4):
        z = torch.stack([fields[row, f].mean() for f in range(7)])
        a = torch.relu(gate.excite.weight @ torch.relu(gate.squeeze.weight @ z))
        torch.testing.assert_close(gate(fields)[row], torch.stack([a[f] * fields[row, f] for f in range(7)]))


def test_the_sigmoid_gate_begins_at_one_and_silences_nothing() -> None:
    gate, fields = SENet(4, gate="sigmoid"), torch.randn(3, 4, 2)
    with torch.no_grad():
        gate.excite.weight.zero_()
    torch.testing.assert_close(gate(fields), fields)
    paper = SENet(4)
    with torch.no_grad():
        paper.excite.weight.fill_(-1)
    assert not paper(fields).any()


def test_fewer_fields_than_the_reduction_keep_one_inner_unit() -> None:
    assert SENet(2)(torch.randn(3, 2, 4)).shape == (3, 2, 4)
