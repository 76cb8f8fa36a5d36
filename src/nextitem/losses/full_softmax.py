"""Cross-entropy over the whole catalogue."""

from __future__ import annotations

from torch import Tensor

from nextitem.ops.softmax_loss import softmax_loss


def full_softmax(hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """Mean over T of -log softmax(hidden . items)[target], scalar.

    `hidden [T, D]` at positions that have a target; `table [N + 1, D]`, row 0 is padding and never competes;
    `targets [T]` item ids. Memory does not grow with T * N.
    """
    return softmax_loss(hidden, table, targets)
