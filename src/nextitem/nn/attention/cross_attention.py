"""Cross attention: each event of one behaviour sequence attends to the events of another sequence.

Shapes: B requests, L and M lengths (right-padded), D width, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nextitem.nn.attention.target_attention import masked_softmax, real_positions


class CrossAttention(nn.Module):
    """Multi-head cross attention: x + W attention(query x, keys and values of the other sequence)."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, hidden_BLD: Tensor, other_BMD: Tensor, other_lengths_B: Tensor) -> Tensor:
        """Return the hidden states with the attention output added, [B, L, D].

        Rows whose other sequence is empty keep their `hidden_BLD`.
        """
        B, L, D = hidden_BLD.shape
        M, H = other_BMD.shape[1], self.heads
        query = self.query(hidden_BLD).view(B, L, H, D // H).transpose(1, 2)
        key, value = self.key_value(other_BMD).view(B, M, 2, H, D // H).permute(2, 0, 3, 1, 4)
        is_real = real_positions(other_lengths_B, M)[:, None, None]
        weights_BHLM = masked_softmax(query @ key.transpose(2, 3) / (D // H) ** 0.5, is_real)
        mixed = (weights_BHLM @ value).transpose(1, 2).reshape(B, L, D)
        return torch.add(hidden_BLD, self.output(mixed))
