"""Cross-entropy over the whole catalogue."""

from __future__ import annotations

from torch import Tensor

from nextitem.ops.softmax_loss import softmax_loss


def full_softmax(hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over T of -log softmax(hidden . items)[target], scalar.

    Memory does not grow with T * N.

    Args:
        hidden: hidden states [T, D] of the positions that have a target.
        table: item vectors [N + 1, D]; row 0 is padding and never competes.
        targets: item ids [T].

    """
    return softmax_loss(hidden, table, targets)
