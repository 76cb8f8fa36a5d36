"""IdIndex: a hash table from 64-bit ids to row numbers, searched and filled by whole tensors.

Open addressing with linear probing: an id is stored in the first free slot from its hash on. Each round of a search
compares all ids that are still open with one slot each, so the number of rounds is the longest probe, not the number of
ids. At most half of the slots are taken, which keeps probes short. A removed id leaves a marker behind, so that later
ids of the same probe stay reachable. The slots are laid out again once ids and markers fill more than half of them; ids
alone then fill at most three eighths.

Shapes: n ids, R rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextitem.nn.tables.id_hash import hash_ids

EMPTY, REMOVED = -1, -2  # contents of slots without a row
MIN_SLOTS = 64
_SLOT_SEED = 3


class IdIndex:
    """Mapping from distinct 64-bit ids, of any sign, to rows; it is rebuilt from them and never saved."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._lay_out(torch.zeros(0, dtype=torch.int64, device=device), torch.zeros(0, dtype=torch.int64), MIN_SLOTS)

    def __len__(self) -> int:
        return self._num_ids

    @property
    def device(self) -> torch.device:
        """Device of the slots."""
        return self._slot_rows.device

    @property
    def num_slots(self) -> int:
        """Number of slots, a power of 2."""
        return len(self._slot_rows)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the row of each id [n]; -1 if an id is not in the index."""
        rows = torch.full_like(ids, -1)
        open_places = torch.arange(len(ids), device=ids.device)
        slots = self._first_slots(ids)
        while len(open_places):
            slot_rows = self._slot_rows[slots]
            is_same = (slot_rows >= 0) & (self._slot_ids[slots] == ids[open_places])
            rows[open_places[is_same]] = slot_rows[is_same]
            goes_on = ~is_same & (slot_rows != EMPTY)
            open_places, slots = open_places[goes_on], (slots[goes_on] + 1) & (self.num_slots - 1)
        return rows

    def insert(self, ids: Tensor, rows: Tensor) -> None:
        """Store the rows [n] of distinct ids [n] that are not in the index yet."""
        if 2 * (self._num_used_slots + len(ids)) > self.num_slots:
            num_slots = self.num_slots
            while 8 * (self._num_ids + len(ids)) > 3 * num_slots:
                num_slots *= 2
            is_stored = self._slot_rows >= 0
            self._lay_out(self._slot_ids[is_stored], self._slot_rows[is_stored], num_slots)
        self._store(ids, rows)

    def remove(self, ids: Tensor) -> None:
        """Remove distinct ids [n] that are in the index."""
        open_places = torch.arange(len(ids), device=ids.device)
        slots = self._first_slots(ids)
        while len(open_places):
            is_same = (self._slot_rows[slots] >= 0) & (self._slot_ids[slots] == ids[open_places])
            self._slot_rows[slots[is_same]] = REMOVED
            open_places, slots = open_places[~is_same], (slots[~is_same] + 1) & (self.num_slots - 1)
        self._num_ids -= len(ids)

    def _first_slots(self, ids: Tensor) -> Tensor:
        return hash_ids(ids, _SLOT_SEED) & (self.num_slots - 1)

    def _lay_out(self, ids: Tensor, rows: Tensor, num_slots: int) -> None:
        """Replace all slots by `num_slots` slots with these ids."""
        self._slot_rows = torch.full((num_slots,), EMPTY, device=ids.device)
        self._slot_ids = torch.zeros(num_slots, dtype=torch.int64, device=ids.device)
        self._num_ids = self._num_used_slots = 0  # slots of ids, and of markers of removed ones
        self._store(ids, rows.to(ids.device))

    def _store(self, ids: Tensor, rows: Tensor) -> None:
        """Write ids into free slots; of several ids that meet in a slot, the first one gets it."""
        open_places = torch.arange(len(ids), device=ids.device)
        slots = self._first_slots(ids)
        while len(open_places):
            is_free = self._slot_rows[slots] < 0
            wins = is_free & _is_first(slots)
            self._num_used_slots += int((self._slot_rows[slots[wins]] == EMPTY).sum())
            self._slot_rows[slots[wins]] = rows[open_places[wins]]
            self._slot_ids[slots[wins]] = ids[open_places[wins]]
            open_places, slots = open_places[~wins], (slots[~wins] + 1) & (self.num_slots - 1)
        self._num_ids += len(ids)


def _is_first(values: Tensor) -> Tensor:
    """Return which places have a value that no earlier place has, bool [n]."""
    order = values.argsort(stable=True)
    is_first = torch.ones(len(values), dtype=torch.bool, device=values.device)
    is_first[order[1:]] = values[order[1:]] != values[order[:-1]]
    return is_first
