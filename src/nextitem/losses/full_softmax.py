"""Cross-entropy over the whole catalogue."""

from __future__ import annotations

import torch
from torch import Tensor


def full_softmax(hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """Mean over T of -log softmax(hidden . items)[target], scalar.

    `hidden [T, D]` at positions that have a target; `table [N + 1, D]`, row 0 is padding and never competes;
    `targets [T]` item ids.
    """
    return torch.nn.functional.cross_entropy(hidden @ table[1:].T, targets - 1)
