"""Reading on: which histories are continued from what a model has kept of them, and which are read anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from nextitem.core.batch import SequenceBatch
from nextitem.core.history_state import HistoryState

Reader = Callable[[SequenceBatch, HistoryState | None], HistoryState]


def read_on(
    batch: SequenceBatch, state: HistoryState | None, read: Reader, *, limit: int, empty: Tensor
) -> HistoryState:
    """The state after all events of `batch`, of which `state` has read the first ones (None: nothing).

    `read(rows, None)` reads histories from the start; `read(rows, state)` reads their further events. A row is
    continued where some of it has been read and all of it fits into `limit` events, since beyond that the model's
    window slides; a row without a new event stays as it is. `empty [D]` is the vector of an empty history. ValueError
    where a state has read more events than there are.
    """
    lengths = batch.items.lengths
    if state is None:
        state = HistoryState(torch.zeros_like(lengths), empty.expand(len(lengths), -1))
    new = state.new_events(lengths)
    continued = (new > 0) & (state.lengths > 0) & (lengths <= limit)
    asked = replace(batch, state=None)
    parts, order = [], []
    for mask, kind in ((continued, "on"), ((new > 0) & ~continued, "anew"), (new == 0, "kept")):
        rows = mask.nonzero()[:, 0]
        if not len(rows):
            continue
        whole = len(rows) == len(lengths)
        part = asked if whole else asked.select(rows)
        former = None if kind == "anew" else state if whole else state.select(rows)
        parts.append(former if former is not None and kind == "kept" else read(part, former))
        order.append(rows)
    if len(parts) < 2:
        return parts[0] if parts else state
    return _joined(parts).select(torch.cat(order).argsort())


def _joined(parts: Sequence[HistoryState]) -> HistoryState:
    """Rows of several states one after another; caches [B, P, ...] are filled up with zeros to the longest P."""
    shapes: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.cache.items():
            if name not in shapes or value.shape[1] > shapes[name].shape[1]:
                shapes[name] = value
    cache = {name: torch.cat([_filled(part, name, like) for part in parts]) for name, like in shapes.items()}
    lengths = torch.cat([part.lengths for part in parts])
    return HistoryState(lengths, torch.cat([part.vectors for part in parts]), cache)


def _filled(part: HistoryState, name: str, like: Tensor) -> Tensor:
    if name not in part.cache:  # nothing of these histories has been read
        return like.new_zeros((len(part.lengths), *like.shape[1:]))
    value = part.cache[name]
    missing = like.shape[1] - value.shape[1]
    return F.pad(value, [0, 0] * (value.dim() - 2) + [0, missing]) if missing else value
