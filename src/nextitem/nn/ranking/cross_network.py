"""Cross networks: layers that compute products of features, of a degree that grows with each layer.

Version 1: Wang et al., DCN, arXiv 1708.05123, eq. 3. Version 2 and its mixture of low-rank experts: Wang et al.,
DCN V2, arXiv 2008.13535, eq. 1 and 3-5.

In every version a layer whose weights are zero returns its input unchanged. L layers of version 1 or 2 are polynomials
of degree L + 1 in their input.

Shapes: P candidates, X input width, R rank, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CrossNetwork(nn.Module):
    """Cross network of version 2 with a matrix for each layer, or of version 1 with a vector (`matrix=False`).

    Version 2: x_{l+1} = x_0 * (W x_l + b) + x_l. Version 1: x_{l+1} = x_0 (w . x_l) + b + x_l.
    """

    def __init__(self, width: int, *, layers: int, matrix: bool) -> None:
        super().__init__()
        self.matrix = matrix
        self.weights = nn.ModuleList(nn.Linear(width, width if matrix else 1, bias=False) for _ in range(layers))
        self.biases = nn.ParameterList(torch.zeros(width) for _ in range(layers))

    def forward(self, inputs_PX: Tensor) -> Tensor:
        """Return the crossed inputs [P, X]."""
        hidden = inputs_PX
        for weight, bias in zip(self.weights, self.biases, strict=True):
            if self.matrix:
                hidden = inputs_PX * (weight(hidden) + bias) + hidden
            else:
                hidden = inputs_PX * weight(hidden) + bias + hidden
        return hidden


class CrossMixture(nn.Module):
    """Cross network whose layers are mixtures of low-rank experts.

    x_{l+1} = sum over experts of g_e(x_l) [x_0 * (U_e tanh(C_e tanh(V_e^T x_l)) + b)] + x_l; the gates sum to 1.
    """

    def __init__(self, width: int, *, layers: int, rank: int, experts: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_MixtureLayer(width, rank=rank, experts=experts) for _ in range(layers))

    def forward(self, inputs_PX: Tensor) -> Tensor:
        """Return the crossed inputs [P, X]."""
        hidden = inputs_PX
        for layer in self.layers:
            hidden = inputs_PX * layer(hidden) + hidden
        return hidden


class _MixtureLayer(nn.Module):
    def __init__(self, width: int, *, rank: int, experts: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(experts, width, rank))  # V
        self.inner = nn.Parameter(torch.empty(experts, rank, rank))  # C
        self.up = nn.Parameter(torch.empty(experts, rank, width))  # U, transposed
        for part in (self.down, self.inner, self.up):
            for matrix in part:  # expert by expert, since Xavier's bounds depend on the shape of the matrix
                nn.init.xavier_uniform_(matrix)
        self.gate = nn.Linear(width, experts)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, hidden_PX: Tensor) -> Tensor:
        """Return the factor of x_0, [P, X]. Since the gates sum to 1, the bias is added once."""
        low_EPR = torch.tanh(torch.tanh(hidden_PX @ self.down) @ self.inner)
        gates_EP1 = self.gate(hidden_PX).softmax(1).T[..., None]
        out: Tensor = (gates_EP1 * (low_EPR @ self.up)).sum(0) + self.bias
        return out
