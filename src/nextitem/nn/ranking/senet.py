"""SENet: gates that weight whole fields.

Huang et al., FiBiNET, arXiv 1905.09433, section 3.3 (squeeze, excitation, re-weight).

Shapes: P candidates, F fields, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


class SENet(nn.Module):
    """Field gates: field f becomes a_f e_f, with a = g(W2 relu(W1 z)) and z_f the mean of e_f.

    Args:
        fields: number of fields (F).
        reduction: factor by which the hidden layer is smaller than the number of fields.
        gate: the function g. "relu" is the paper's; it can set a field to zero for good. "sigmoid" is twice the
            logistic function; with zero weights every field remains unchanged.

    """

    def __init__(self, fields: int, *, reduction: int = 3, gate: Literal["relu", "sigmoid"] = "relu") -> None:
        super().__init__()
        inner = max(1, fields // reduction)
        self.squeeze = nn.Linear(fields, inner, bias=False)
        self.excite = nn.Linear(inner, fields, bias=False)
        self.gate = gate

    def forward(self, fields_PFD: Tensor) -> Tensor:
        """Return the weighted fields [P, F, D]."""
        excited = self.excite(torch.relu(self.squeeze(fields_PFD.mean(2))))
        gates_PF = torch.relu(excited) if self.gate == "relu" else 2 * torch.sigmoid(excited)
        return fields_PFD * gates_PF[..., None]
