"""State cache: what a model has read of the histories of recent users, so that a new event costs one step.

A state is reused only if the first events of a history are, byte by byte, those that it has read. So an event that
arrives late, a deletion, or a window of the store that moves leads to a fresh reading, and answers never depend on what
is in the cache. States are rows of one pool of tensors: a batch of users is gathered and stored by one operation for
each tensor, whatever their number.

Shapes: B requests, P columns of a cache, S slots of the pool.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nextitem.core.batch import SequenceBatch
from nextitem.core.history_state import HistoryState
from nextitem.core.recommender import Recommender
from nextitem.core.roles import Incremental

COLUMNS_STEP = 8  # the pool grows by so many columns at once
MIN_EVENTS = 1024  # events of a batch below which reading all of them takes no longer than looking up states
UNREAD = 0  # slot of the pool in which nothing has been read


@dataclass(frozen=True)
class _Entry:
    """State of one user: its slot in the pool, the number of events that it has read, and their digest."""

    slot: int
    num_events: int
    digest: bytes


class StateCache:
    """States of the histories of recent users, in memory of a bounded size; the least recent user is evicted first.

    Threads may share it.

    Attributes:
        hits: histories of which only new events were read, or none.
        misses: histories that were read from the start, though their users may come back.
        evictions: states that were removed to make room.

    """

    def __init__(self, model: Recommender, *, max_bytes: int, min_events: int = MIN_EVENTS) -> None:
        """Create an empty cache.

        Args:
            model: the model, which is Incremental.
            max_bytes: largest memory of the states, in bytes. While they move to a larger pool, both are in memory.
            min_events: batches whose users have fewer events in all are read from the start, and nothing is stored.

        """
        assert isinstance(model, Incremental), f"{type(model).__name__} reads every history as a whole"
        self._encode, self._version = model.encode_history, model.weights_fingerprint
        self._max_bytes, self._min_events = max_bytes, min_events
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._pool: HistoryState | None = None  # S slots
        self._free: list[int] = []
        self._num_removals = 0
        self._can_extend = True
        self._starts: dict[int, int] = {}  # first event that is read of a history, by its number of events
        self._lock = threading.Lock()
        self.hits = self.misses = self.evictions = 0

    def __len__(self) -> int:
        """Return the number of users with a state."""
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        """Memory of the states, in bytes."""
        with self._lock:
            return 0 if self._pool is None else len(self._entries) * _row_bytes(self._pool)

    def read(self, batch: SequenceBatch, user_ids: Sequence[str | None]) -> HistoryState | None:
        """Return the state after all events of the requests' histories, and store it for the next requests.

        Args:
            batch: the requests.
            user_ids: the users whose states are stored, by request; None: this history is of nobody who comes back.

        Returns:
            The state for `batch.state`, or None if states would not save time: no history is of a user, there are few
            events, or nothing that was read can be used after the next event (the window moves with each event, or
            positions are counted from the last one).

        """
        lengths = batch.items.lengths.tolist()
        rows = [
            row
            for row, user in enumerate(user_ids)
            if user is not None and lengths[row] and not self._is_left_behind(lengths[row])
        ]
        if not self._can_extend or not rows or sum(lengths[row] for row in rows) < self._min_events:
            return None
        events = _EventBytes(batch)
        with self._lock:
            former, num_removals = self._former(rows, user_ids, events), self._num_removals
        state = self._encode(batch, former)
        if not state.cache:  # the model computes vectors alone, so each new event needs all events again
            self._can_extend = False
            return state
        self._starts.update(zip(lengths, state.starts.tolist(), strict=True))
        is_reused = _reused_rows(former, state)
        num_hits = sum(is_reused[row] for row in rows)
        with self._lock:
            self.hits += num_hits
            self.misses += len(rows) - num_hits
            if num_removals == self._num_removals:  # otherwise a user of the batch may have been removed meanwhile
                self._store(rows, user_ids, events, state)
        return state

    def forget(self, user_id: str) -> None:
        """Remove the state of a user, if there is one, and overwrite its memory."""
        with self._lock:
            self._num_removals += 1
            entry = self._entries.pop(user_id, None)
            if entry is not None:
                self._clear(entry.slot)
                self._free.append(entry.slot)

    def _is_left_behind(self, num_events: int) -> bool:
        """Return whether the next event moves the window of such a history; its start depends on the length alone."""
        start, next_start = self._starts.get(num_events), self._starts.get(num_events + 1)
        return start is not None and next_start is not None and start != next_start

    def _former(self, rows: Sequence[int], user_ids: Sequence[str | None], events: _EventBytes) -> HistoryState | None:
        """Return the state that each history continues, if there is one; None if nothing is stored."""
        if self._pool is not None and self._pool.version != self._version():
            self._entries.clear()
            self._pool = None
        if self._pool is None:
            return None
        slots = [UNREAD] * len(user_ids)
        for row in rows:
            user = user_ids[row]
            assert user is not None
            entry = self._entries.get(user)
            if entry is not None:
                self._entries.move_to_end(user)
                if events.digest(row, entry.num_events) == entry.digest:
                    slots[row] = entry.slot
        return self._pool.select(torch.tensor(slots, device=self._pool.lengths.device))

    def _store(
        self, rows: Sequence[int], user_ids: Sequence[str | None], events: _EventBytes, state: HistoryState
    ) -> None:
        """Store the states of some rows; those of the same user are equal, so the last one is stored."""
        self._make_pool(state, len({user_ids[row] for row in rows} - self._entries.keys()))
        pool = self._pool
        if pool is None:
            return
        changed: dict[str, tuple[int, _Entry]] = {}
        for row in rows:
            user = user_ids[row]
            assert user is not None
            num_events, former = events.lengths[row], self._entries.get(user)
            digest = events.digest(row, num_events)
            if former is not None and (former.num_events, former.digest) == (num_events, digest):
                continue
            slot = former.slot if former is not None else self._new_slot()
            self._entries[user] = _Entry(slot, num_events, digest)
            changed[user] = (row, self._entries[user])
        # A user of the batch may have been evicted for another one.
        pairs = [(row, entry.slot) for user, (row, entry) in changed.items() if self._entries.get(user) is entry]
        if not pairs:
            return
        device = pool.lengths.device
        sources = torch.tensor([row for row, _ in pairs], device=device)
        slots = torch.tensor([slot for _, slot in pairs], device=device)
        for target, value in _tensor_pairs(pool, state):
            if value.dim() > 1:
                target[slots, : value.shape[1]] = value[sources]
            else:
                target[slots] = value[sources]

    def _new_slot(self) -> int:
        """Return a free slot, that of the least recent user if there is none."""
        if not self._free:
            _, entry = self._entries.popitem(last=False)
            self.evictions += 1
            self._clear(entry.slot)
            return entry.slot
        return self._free.pop()

    def _clear(self, slot: int) -> None:
        assert self._pool is not None
        for target, _ in _tensor_pairs(self._pool, self._pool):
            target[slot] = 0

    def _make_pool(self, state: HistoryState, num_new: int) -> None:
        """Create the pool, or let it grow for the rows of a state, `num_new` of them; none if not even one row fits."""
        num_needed, num_slots = 1 + len(self._entries) + num_new, 0
        former = self._pool
        if former is not None:
            num_slots = len(former.lengths)
            is_wide = all(
                value.dim() < 2 or value.shape[1] <= target.shape[1] for target, value in _tensor_pairs(former, state)
            )
            if is_wide and (num_needed <= num_slots or num_slots == self._max_bytes // _row_bytes(former)):
                return
        shape = _wider(state, former)
        num_slots = min(self._max_bytes // _row_bytes(shape), max(num_slots, 2 ** (num_needed - 1).bit_length()))
        entries = list(self._entries.items())[-(num_slots - 1) :] if num_slots > 1 else []  # slot 0 is UNREAD
        self.evictions += len(self._entries) - len(entries)
        self._pool = shape.zeros(num_slots) if num_slots > 1 else None
        self._entries = OrderedDict((user, replace(entry, slot=slot)) for slot, (user, entry) in enumerate(entries, 1))
        self._free = list(range(num_slots - 1, len(entries), -1))
        if self._pool is None or former is None or not entries:
            return
        slots = torch.tensor([entry.slot for _, entry in entries], device=former.lengths.device)
        for target, value in _tensor_pairs(self._pool, former):
            part = target[1 : len(entries) + 1]
            (part[:, : value.shape[1]] if value.dim() > 1 else part).copy_(value[slots])


class _EventBytes:
    """The events of a batch as bytes, row by row, so that the beginnings of histories can be compared."""

    def __init__(self, batch: SequenceBatch) -> None:
        columns = {"items": batch.items, "actions": batch.actions, "timestamps": batch.timestamps, **batch.features}
        present = {name: column for name, column in columns.items() if column is not None}
        self._names = ",".join(sorted(present)).encode()
        parts = [_as_bytes(present[name].values) for name in sorted(present)]
        self._bytes: NDArray[np.uint8] = np.ascontiguousarray(np.concatenate(parts, axis=1))
        offsets = batch.items.offsets.tolist()
        self._starts = offsets[:-1]
        self.lengths = [end - start for start, end in pairwise(offsets)]
        self._digests: dict[tuple[int, int], bytes] = {}

    def digest(self, row: int, num_events: int) -> bytes:
        """Return a hash of the first events of a history, and of the names of their columns; b"" if it has fewer."""
        if num_events > self.lengths[row]:
            return b""
        if (row, num_events) not in self._digests:
            start = self._starts[row]
            hasher = hashlib.blake2b(self._names, digest_size=16)
            hasher.update(self._bytes[start : start + num_events].data)
            self._digests[row, num_events] = hasher.digest()
        return self._digests[row, num_events]


def _as_bytes(values: Tensor) -> NDArray[np.uint8]:
    """Return values [T] as bytes, [T, bytes of a value]."""
    array = np.ascontiguousarray(values.cpu().numpy())
    return array.view(np.uint8).reshape(len(array), array.itemsize)


def _reused_rows(former: HistoryState | None, state: HistoryState) -> list[bool]:
    """Return whether the former state of each row spared its events from being read again, [B]."""
    if former is None:
        return [False] * len(state.lengths)
    is_extended = (former.starts == state.starts) & bool(former.cache)
    reused: list[bool] = ((former.lengths > 0) & (is_extended | (former.lengths == state.lengths))).tolist()
    return reused


def _tensor_pairs(first: HistoryState, second: HistoryState) -> list[tuple[Tensor, Tensor]]:
    """Return the tensors of two states of one model, each with its counterpart; those that one lacks are left out."""
    pairs = [(first.lengths, second.lengths), (first.starts, second.starts)]
    if first.vectors is not None and second.vectors is not None:
        pairs.append((first.vectors, second.vectors))
    return pairs + [(first.cache[name], value) for name, value in second.cache.items() if name in first.cache]


def _wider(state: HistoryState, former: HistoryState | None) -> HistoryState:
    """Return one row like those of a state, with room for more columns, and for all columns of a former pool."""

    def row(value: Tensor, like: Tensor | None) -> Tensor:
        if value.dim() < 3:
            return value[:1]
        width = max(value.shape[1], 0 if like is None else like.shape[1])
        missing = -(-width // COLUMNS_STEP) * COLUMNS_STEP - value.shape[1]
        return F.pad(value[:1], [0, 0] * (value.dim() - 2) + [0, missing])

    cache = {} if former is None else former.cache
    rows = {name: row(value, cache.get(name)) for name, value in state.cache.items()}
    return replace(state.select(torch.tensor([0], device=state.lengths.device)), cache=rows)


def _row_bytes(state: HistoryState) -> int:
    """Return the memory of one row of a state, in bytes."""
    return state.num_bytes // len(state.lengths)
