"""Gated recurrent layers that process whole sequences at request time and single steps in training.

Shapes: B sequences, T events of all sequences, E input width, D hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


class GRULayer(nn.Module):
    """GRU layer: n = tanh(W x + b + r * (U h + b')); h' = (1 - z) n + z h."""

    def __init__(self, input_width: int, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(input_width, width)
        for parameter in self.gru.parameters():
            if parameter.dim() == 1:
                nn.init.zeros_(parameter)
            else:
                for gate in parameter.data.chunk(3):
                    glorot_(gate)

    def step(self, inputs_BE: Tensor, state_BD: Tensor) -> Tensor:
        """Return the next state [B, D] after one event of each sequence."""
        return torch.gru_cell(inputs_BE, state_BD, *self.gru.parameters())

    def forward(self, inputs: PackedSequence, state_BD: Tensor) -> tuple[PackedSequence, Tensor]:
        """Return the states after every event, and the last state of each sequence [B, D]."""
        out, last = self.gru(inputs, state_BD[None])
        return out, last[0]


class OneHotGRULayer(nn.Module):
    """GRU layer over one-hot items: the "no embedding" mode of GRU4Rec's authors.

    Its cell differs from that of GRULayer: n = tanh(W x + U (r * h)); h' = (1 - z) h + z n.
    """

    def __init__(self, num_rows: int, width: int) -> None:
        super().__init__()
        self.inputs = nn.Embedding(num_rows, 3 * width, sparse=True)  # W of n, r, z
        self.gates = nn.Parameter(torch.empty(2 * width, width))  # U of r, z
        self.candidate = nn.Parameter(torch.empty(width, width))  # U of n
        self.bias = nn.Parameter(torch.zeros(3 * width))
        for gate in (*self.inputs.weight.data.chunk(3, dim=1), *self.gates.data.chunk(2), self.candidate.data):
            glorot_(gate)

    def step(self, items_B: Tensor, state_BD: Tensor) -> Tensor:
        """Return the next state [B, D] after one item of each sequence."""
        new, reset, update = (self.inputs(items_B) + self.bias).chunk(3, dim=1)
        from_reset, from_update = (state_BD @ self.gates.T).chunk(2, dim=1)
        reset, update = torch.sigmoid(reset + from_reset), torch.sigmoid(update + from_update)
        candidate = torch.tanh(new + (reset * state_BD) @ self.candidate.T)
        return (1 - update) * state_BD + update * candidate

    def forward(self, inputs: PackedSequence, state_BD: Tensor) -> tuple[PackedSequence, Tensor]:
        """Return the states after every event, and the last state of each sequence [B, D].

        `inputs` packs item ids.
        """
        states = state_BD if inputs.sorted_indices is None else state_BD[inputs.sorted_indices]
        states, out = states.clone(), []
        # Sequences are sorted by length, so those that continue come first.
        for items in torch.split(inputs.data, inputs.batch_sizes.tolist()):
            out.append(self.step(items, states[: len(items)]))
            states[: len(items)] = out[-1]
        packed = PackedSequence(torch.cat(out), *inputs[1:])
        return packed, states if inputs.unsorted_indices is None else states[inputs.unsorted_indices]


def glorot_(matrix: Tensor) -> None:
    """Fill the matrix of one gate uniformly within +- sqrt(6 / (rows + columns)), in place."""
    bound = (6 / sum(matrix.shape)) ** 0.5
    nn.init.uniform_(matrix, -bound, bound)
