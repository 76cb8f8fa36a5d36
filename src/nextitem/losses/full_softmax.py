"""Cross-entropy over the whole catalogue."""

from __future__ import annotations

from torch import Tensor

from nextitem.ops.softmax_loss import softmax_loss


def full_softmax(hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean over T of -log softmax(hidden . items)[target], scalar.

    Memory does not grow with T * N.

    Args:
        hidden: hidden states [T, D] of the positions that have a target.
        table: item vectors [N + 1, D]; row 0 is padding and never competes.
        targets: item ids [T], or [T, K] for several targets of a position, whose losses are summed.
        weights: weights [T, K] of the targets; None: 1.

    """
    return softmax_loss(hidden, table, targets, weights)
