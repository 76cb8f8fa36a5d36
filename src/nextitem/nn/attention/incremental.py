"""Incremental encoding: which histories extend what a model has kept of them, and which are read from the start."""

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
    """The events of a history that a model reads: at most `length`, the latest ones.

    length  events that are read at most
    step    events by which the window slides once a history is longer; at most `length`

    A window that slides by one event at a time moves every position with each event, so nothing that was kept of it is
    of use. One that slides by `step` events is full just before it slides, and `length - step + 1` events long
    thereafter: in between a history can be extended. Where it begins depends on the number of events alone, so that a
    history is read alike with a state and without one.
    """

    length: int
    step: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.step <= self.length:
            raise ValueError(f"window_step = {self.step} must be 1 to max_history_length = {self.length}")

    def starts(self, lengths: Tensor) -> Tensor:
        """Return the first event that is read of histories of `lengths [B]`, [B]."""
        beyond = (lengths - self.length).clamp(min=0)
        return (beyond + self.step - 1) // self.step * self.step

    def lengths(self, lengths: Tensor) -> Tensor:
        """Return how many events are read of histories of `lengths [B]`, [B]."""
        return lengths - self.starts(lengths)

    def of(self, histories: Jagged) -> Jagged:
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
    """Return the state after all events of `batch`, of which `state` has read the first ones (None: none of them).

    A row is extended if something of it has been read and its window begins where it began then; a row without a new
    event stays as it is; any other row is read from the start.

    Args:
        read: `read(rows, None)` reads histories from the start of their window; `read(rows, state)` reads what follows
            in them.
        version: fingerprint of the model and its weights.
        empty: vector [D] of an empty history.
        is_extensible: False if a new event changes what earlier ones have left, so that nothing can be extended.

    Raises:
        StaleStateError: `state` is of another model or of other weights.
        ValueError: `state` has read more events than there are.

    """
    lengths = batch.items.lengths
    if state is None:
        state = HistoryState(torch.zeros_like(lengths), empty.expand(len(lengths), -1), version=version)
    state.check_version(version)
    new, starts = state.new_events(lengths), window.starts(lengths)
    extended = (new > 0) & (state.lengths > 0) & (state.starts == starts) & is_extensible
    requests = replace(batch, state=None)
    parts, order = [], []
    for mask, kind in ((extended, "extended"), ((new > 0) & ~extended, "from the start"), (new == 0, "unchanged")):
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
