"""Cross-entropy over the whole catalogue."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LOGITS_AT_ONCE = 2**25  # entries: 128 MiB in float32


def full_softmax(hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """Mean over T of -log softmax(hidden . items)[target], scalar.

    `hidden [T, D]` at positions that have a target; `table [N + 1, D]`, row 0 is padding and never competes;
    `targets [T]` item ids. Logits beyond `LOGITS_AT_ONCE` are computed in chunks of positions and once more in the
    backward pass, so that memory does not grow with T * N.
    """
    rows = max(1, LOGITS_AT_ONCE // max(1, len(table) - 1))
    if len(hidden) <= rows:
        return _summed(hidden, table, targets) / len(hidden)
    parts = [
        checkpoint(_summed, part, table, wanted, use_reentrant=False, preserve_rng_state=False)
        for part, wanted in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    ]
    return torch.stack(parts).sum() / len(hidden)


def _summed(hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(hidden @ table[1:].T, targets - 1, reduction="sum")
