"""Recurrent layers: both cells equal their formulas, packed sequences equal single steps, initialisation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from nextitem.nn.recurrent import GRULayer, OneHotGRULayer, glorot_

LENGTHS = torch.tensor([2, 4, 1])


def layers() -> tuple[tuple[GRULayer, Tensor], tuple[OneHotGRULayer, Tensor]]:
    """Return both layers, each with a padded input [3, 4]."""
    torch.manual_seed(0)
    return (GRULayer(5, 3), torch.randn(3, 4, 5)), (OneHotGRULayer(8, 3), torch.randint(1, 8, (3, 4)))


@pytest.mark.parametrize("kind", [0, 1])
def test_packed_sequences_equal_single_steps(kind: int) -> None:
    layer, inputs = layers()[kind]
    initial_state = torch.randn(3, 3)
    _, last = layer(pack_padded_sequence(inputs, LENGTHS, batch_first=True, enforce_sorted=False), initial_state)
    for row, length in enumerate(LENGTHS.tolist()):
        state = initial_state[row : row + 1]
        for event in range(length):
            state = layer.step(inputs[row : row + 1, event], state)
        torch.testing.assert_close(last[row : row + 1], state)


def test_cells_of_both_layers_equal_their_formulas() -> None:
    """Embedded: n = tanh(Wx + b + r (Uh + b')), (1 - z) n + z h; one-hot: n = tanh(Wx + U (r h)), (1 - z) h + z n."""
    (gru, inputs), (one_hot, items) = layers()
    state = torch.randn(3, 3)
    with torch.no_grad():
        for parameter in [*gru.parameters(), *one_hot.parameters()]:
            parameter.copy_(torch.randn(parameter.shape))
    w, u, b, b2 = gru.parameters()
    x = inputs[:, 0]
    reset, update, new = (x @ w.T + b).chunk(3, 1)
    from_reset, from_update, from_new = (state @ u.T + b2).chunk(3, 1)
    z = torch.sigmoid(update + from_update)
    n = torch.tanh(new + torch.sigmoid(reset + from_reset) * from_new)
    torch.testing.assert_close(gru.step(x, state), (1 - z) * n + z * state)

    new, reset, update = (one_hot.inputs(items[:, 0]) + one_hot.bias).chunk(3, 1)
    from_reset, from_update = (state @ one_hot.gates.T).chunk(2, 1)
    z = torch.sigmoid(update + from_update)
    n = torch.tanh(new + (torch.sigmoid(reset + from_reset) * state) @ one_hot.candidate.T)
    torch.testing.assert_close(one_hot.step(items[:, 0], state), (1 - z) * state + z * n)


def test_every_gate_is_initialised_within_its_own_glorot_bound() -> None:
    torch.manual_seed(0)
    layer = GRULayer(40, 60)
    w, u, *biases = layer.parameters()
    for matrix, bound in ((w, (6 / 100) ** 0.5), (u, (6 / 120) ** 0.5)):
        for gate in matrix.chunk(3):
            assert 0.97 * bound < float(gate.detach().abs().max()) <= bound
            assert float(gate.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not any(bool(bias.any()) for bias in biases)
    table = torch.empty(100, 50)
    glorot_(table)
    assert 0.97 * 0.2 < float(table.abs().max()) <= 0.2
