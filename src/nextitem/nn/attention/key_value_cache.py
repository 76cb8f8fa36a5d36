"""Keys and values of positions that have been read, so that a further position attends to them without reading them.

Shapes: B histories, P positions kept, n further positions (of the row with the most), P' after them, H heads, d width
of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


class FurtherPositions:
    """Where further positions of B histories go, and what each of them may see; shared by all layers.

    Row b has `lengths[b]` positions kept, at columns 0 .. lengths[b] - 1, and gets `new[b]` more (both [B] int64).
    """

    def __init__(self, lengths: Tensor, new: Tensor) -> None:
        column = torch.arange(int(new.max()), device=new.device)
        self.real = column < new[:, None]  # [B, n]
        self.rows, steps = self.real.nonzero(as_tuple=True)
        self.columns = lengths[self.rows] + steps
        self.size = int((lengths + new).max())  # P'
        seen = torch.arange(self.size, device=new.device)
        self.visible = (seen <= (lengths[:, None] + column)[..., None])[:, None]  # [B, 1, n, P']: itself and before


class KeyValueCache:
    """Keys and values of one layer: `kept [B, P, 2, H, d]` of earlier positions, None where there are none.

    It serves one pass. Appending makes a new tensor: a state that a caller still holds never changes, so two
    continuations of one state are independent. Right of a history's length stands what is never looked at.
    """

    def __init__(self, kept: Tensor | None = None, further: FurtherPositions | None = None) -> None:
        self.kept = kept
        self.further = further

    @property
    def visible(self) -> Tensor | None:
        """bool [B, 1, n, P'] of what each new position may see; None where positions are a history's first."""
        return None if self.further is None else self.further.visible

    def append(self, keys_values: Tensor) -> Tensor:
        """Keeps those of new positions [B, n, 2, H, d], and returns all of them [B, P', 2, H, d]."""
        if self.kept is None or self.further is None:
            self.kept = keys_values.contiguous()
        else:
            at = self.further
            grown = F.pad(self.kept[:, : at.size], (0, 0, 0, 0, 0, 0, 0, max(0, at.size - self.kept.shape[1])))
            grown[at.rows, at.columns] = keys_values[at.real]
            self.kept = grown
        return self.kept
