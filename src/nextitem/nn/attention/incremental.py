"""Incremental encoding: decide which histories extend their cached state and which are read from the start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.history_state import HistoryState
from nextitem.core.jagged import Jagged

Reader = Callable[[SequenceBatch, HistoryState | None], HistoryState]


@dataclass(frozen=True)
class Window:
    """Window of a history: the latest events, which are the only ones that a model reads.

    If a window slides by one event at a time, every position changes with each event, and no cached state can be
    reused. A window that slides by `step` events is full just before it slides, and `length - step + 1` events long
    just after. In between, a history can be extended. The start of the window depends on the number of events alone,
    so a history is read the same way with a state and without one.

    Attributes:
        length: largest number of events that are read.
        step: number of events by which the window slides once a history is longer than `length`; at most `length`.

    """

    length: int
    step: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.step <= self.length:
            raise ValueError(f"window_step = {self.step} must be 1 to max_history_length = {self.length}")

    def starts(self, lengths: Tensor) -> Tensor:
        """Return the index of the first event that is read, [B], for histories of `lengths [B]`."""
        surplus = (lengths - self.length).clamp(min=0)
        return (surplus + self.step - 1) // self.step * self.step

    def lengths(self, lengths: Tensor) -> Tensor:
        """Return the number of events that are read, [B], for histories of `lengths [B]`."""
        return lengths - self.starts(lengths)

    def recent_events(self, histories: Jagged) -> Jagged:
        """Return the events that are read of each history."""
        return histories.last(self.lengths(histories.lengths))


def extend_history_state(
    batch: SequenceBatch,
    state: HistoryState | None,
    read: Reader,
    *,
    window: Window,
    version: str,
    empty: Tensor,
    is_extensible: bool = True,
) -> HistoryState:
    """Return the state after all events of `batch`, reusing the `state` after its first events.

    A row is extended if its state has read at least one event and its window still begins at the same event. A row
    without a new event keeps its state. Any other row is read from the start.

    Args:
        batch: requests with the whole histories.
        state: state after the first events of these histories, or None if none of them has been read.
        read: function that encodes histories. `read(rows, None)` reads them from the start of their window,
            `read(rows, state)` reads the events that follow those of `state`.
        window: which events of a history the model reads.
        version: fingerprint of the model and its weights.
        empty: vector [D] of an empty history.
        is_extensible: False if a new event changes the state of earlier ones, so that nothing can be extended.

    Raises:
        StaleStateError: `state` belongs to another model or to other weights.
        ValueError: `state` has read more events than there are.

    """
    lengths = batch.items.lengths
    if state is None:
        state = HistoryState(torch.zeros_like(lengths), empty.expand(len(lengths), -1), version=version)
    state.check_version(version)
    num_new, starts = state.new_events(lengths), window.starts(lengths)
    if not bool(num_new.any()):
        return state
    is_extended = (num_new > 0) & (state.lengths > 0) & (state.starts == starts) & is_extensible
    is_fresh = (num_new > 0) & ~is_extended
    requests = replace(batch, state=None)
    parts, order = [], []
    for mask, kind in ((is_extended, "extended"), (is_fresh, "from the start"), (num_new == 0, "unchanged")):
        rows = mask.nonzero()[:, 0]
        if not len(rows):
            continue
        is_whole = len(rows) == len(lengths)
        former = None if kind == "from the start" else state if is_whole else state.select(rows)
        if former is None or kind == "extended":
            part = read(requests if is_whole else requests.select(rows), former)
            former = replace(part, starts=starts[rows], version=version)
        parts.append(former)
        order.append(rows)
    if len(parts) < 2:
        return parts[0] if parts else state
    return HistoryState.concat(parts).select(torch.cat(order).argsort())
