"""State of all customers of a simulation, as arrays; a view of one of them.

Shapes: C customers, N items, D departments, V latent width, G categories.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableSet, Sequence
from dataclasses import dataclass

import numpy as np

from nextitem.data.shop.truth import Bools, Floats, Ints


@dataclass(eq=False)
class Customers(Sequence["Customer"]):
    """State of all customers; as a sequence, it contains a view of each of them.

    Attributes:
        user_ids: ids that a server, a run or a log sees.
        rows: row of the shop's users whose tastes each customer has, [C].
        is_new: whether the shop's log does not contain the customer, [C].
        last_items: row of the last clicked item, [C]; -1: none.
        owned: durable goods that each customer has, which are not bought again, [C, N].
        taste_shift: how far clicks have moved the taste, [C, V].
        interest_shift: how far clicks have moved the interest in departments, [C, D].
        boredom: appeal that each category has lost by being shown, as it was at the last visit, [C, G].
        last_times: time of the last visit in seconds, [C]; 0: none.
        satisfaction: mean appeal of the lists so far, recent ones most, [C]; NaN: none yet.
        has_left: whether the customer has left for good, [C].

    """

    user_ids: list[str]
    rows: Ints
    is_new: Bools
    last_items: Ints
    owned: Bools
    taste_shift: Floats
    interest_shift: Floats
    boredom: Floats
    last_times: Floats
    satisfaction: Floats
    has_left: Bools

    def __len__(self) -> int:
        return len(self.user_ids)

    def __getitem__(self, number: int) -> Customer:  # type: ignore[override]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return Customer(self, number % len(self))


class Customer:
    """View of one customer of `Customers`."""

    def __init__(self, customers: Customers, number: int) -> None:
        self._all, self.number = customers, number

    @property
    def user_id(self) -> str:
        """Id that a server sees."""
        return self._all.user_ids[self.number]

    @property
    def row(self) -> int:
        """Row of the shop's users whose tastes the customer has."""
        return int(self._all.rows[self.number])

    @property
    def is_new(self) -> bool:
        """Whether the shop's log does not contain the customer."""
        return bool(self._all.is_new[self.number])

    @property
    def last_item(self) -> int:
        """Row of the last clicked item; -1: none."""
        return int(self._all.last_items[self.number])

    @last_item.setter
    def last_item(self, row: int) -> None:
        self._all.last_items[self.number] = row

    @property
    def owned_items(self) -> OwnedItems:
        """Rows of the durable goods that the customer has, as a set that can be changed."""
        return OwnedItems(self._all.owned[self.number])


class OwnedItems(MutableSet[int]):
    """Set of the rows whose entry in a mask is true."""

    def __init__(self, mask: Bools) -> None:
        self._mask = mask

    def __contains__(self, row: object) -> bool:
        return isinstance(row, int) and bool(self._mask[row])

    def __iter__(self) -> Iterator[int]:
        return iter(np.flatnonzero(self._mask).tolist())

    def __len__(self) -> int:
        return int(self._mask.sum())

    def add(self, value: int) -> None:
        """Set the entry of a row."""
        self._mask[value] = True

    def discard(self, value: int) -> None:
        """Clear the entry of a row."""
        self._mask[value] = False
