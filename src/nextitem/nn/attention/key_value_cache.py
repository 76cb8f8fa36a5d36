"""Key/value cache: new positions attend to cached ones without recomputing them.

Shapes: B histories, P cached positions, n new positions (of the row with the most), P' positions after them, H heads,
d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


class NewPositions:
    """Cache columns of the new positions of B histories, and their attention mask; shared by all layers.

    Row b has `lengths[b]` cached positions, at columns 0 .. lengths[b] - 1, and gets `num_new[b]` more (both [B]
    int64).
    """

    def __init__(self, lengths: Tensor, num_new: Tensor) -> None:
        column = torch.arange(int(num_new.max()), device=num_new.device)
        self.is_real = column < num_new[:, None]  # [B, n]
        self.rows, steps = self.is_real.nonzero(as_tuple=True)
        self.columns = lengths[self.rows] + steps
        self.size = int((lengths + num_new).max())  # P'
        keys = torch.arange(self.size, device=num_new.device)
        # [B, 1, n, P']: each position sees itself and earlier ones.
        self.visible = (keys <= (lengths[:, None] + column)[..., None])[:, None]


class KeyValueCache:
    """Key/value cache of one layer, for one forward pass.

    `keys_values [B, P, 2, H, d]` are those of earlier positions, or None if there are none. Appending creates a new
    tensor: a state that a caller still refers to never changes, so two continuations of one state are independent.
    Columns beyond the length of a history contain values that are never read.
    """

    def __init__(self, keys_values: Tensor | None = None, further: NewPositions | None = None) -> None:
        self.keys_values = keys_values
        self.further = further

    @property
    def visible(self) -> Tensor | None:
        """Attention mask of the new positions, bool [B, 1, n, P']; None if they are the first of their histories."""
        return None if self.further is None else self.further.visible

    def append(self, keys_values: Tensor) -> Tensor:
        """Append keys and values of new positions [B, n, 2, H, d], and return all of them [B, P', 2, H, d]."""
        if self.keys_values is None or self.further is None:
            self.keys_values = keys_values.contiguous()
        else:
            new, former = self.further, self.keys_values
            grown = F.pad(former[:, : new.size], (0, 0, 0, 0, 0, 0, 0, max(0, new.size - former.shape[1])))
            grown[new.rows, new.columns] = keys_values[new.is_real]
            self.keys_values = grown
        return self.keys_values
