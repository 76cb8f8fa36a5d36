"""Ground truth of whole lists in the simulated shop: what a customer does who goes down a list.

The customer looks at each slot with a probability that falls from slot to slot. A clicked item becomes the last item:
items further down that go with it gain. Items whose category is already above lose appeal, looked at or not: a list of
one kind tires. So the value of an item depends on the items above it, and the best list is not the list of the best
items. Expected figures are exact: dynamic programming over the last clicked slot, without sampling.
Shapes: B customers, K slots. A click table has the probabilities of a click if the customer looks, [B, K + 1, K]: row 0
if nothing of the list was clicked so far, row j if slot j (from 1) was clicked last, and a column for each slot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nextitem.data.shop.truth import (
    CLICK_BIAS,
    CLICK_COMPLEMENT,
    EXAMINATION,
    Bools,
    Floats,
    Ints,
    ShopTruth,
)


@dataclass(frozen=True)
class ListEffects:
    """What the items of a list do to each other.

    Attributes:
        complements: whether a clicked item becomes the last item, with which items further down may go.
        fatigue: appeal, as a logit, that an item loses for each item of its category in a slot above.
        repeats: whether an item that is in a slot above, too, can be clicked again.
        examination: probability that a customer looks at each slot; lists are not longer.

    """

    complements: bool = True
    fatigue: float = 0.5
    repeats: bool = False
    examination: tuple[float, ...] = tuple(EXAMINATION.tolist())


NO_EFFECTS = ListEffects(complements=False, fatigue=0.0, repeats=True)  # as the shop's own log


def click_table(
    truth: ShopTruth,
    users: ArrayLike,
    items: ArrayLike,
    timestamps: ArrayLike,
    *,
    last_items: ArrayLike = -1,
    effects: ListEffects | None = None,
    can_click: ArrayLike = True,
) -> Floats:
    """Return the click table of a list for each customer, [B, K + 1, K].

    Args:
        truth: the truth of the shop.
        users: row numbers of the customers, [B].
        items: row numbers of the items of each list, best first, [B, K]; -1: an empty slot.
        timestamps: times in seconds, [B].
        last_items: the customers' last items, [B]; -1: none.
        effects: what items do to each other; None: the defaults of `ListEffects`.
        can_click: which items can be clicked at all, [B, K]; the others never are.

    Raises:
        ValueError: lists have more items than slots that can be looked at.

    """
    effects = effects or ListEffects()
    users, rows = np.asarray(users), np.asarray(items, dtype=np.int64)
    times: Ints = np.asarray(timestamps)
    appeal = CLICK_BIAS + truth.click_appeal(users[:, None], rows, times[:, None])
    last = np.broadcast_to(np.asarray(last_items), users.shape)
    groups = truth.category
    gains = click_gains(truth)
    before = np.where(last >= 0, groups[last], -1)
    return list_table(appeal, rows, groups[rows], gains=gains, before=before, effects=effects, can_click=can_click)


def click_gains(truth: ShopTruth) -> Floats:
    """Return what an item's logit gains from the last item, by their categories, [C, C]."""
    result: Floats = CLICK_COMPLEMENT * truth.complements
    return result


def list_table(
    appeal: Floats,
    items: Ints,
    groups: Ints,
    *,
    gains: Floats,
    before: Ints,
    effects: ListEffects,
    can_click: ArrayLike = True,
) -> Floats:
    """Return the click table of lists of items whose appeal alone is known, [B, K + 1, K].

    Args:
        appeal: the logit of a click on each item alone, without what is gained from the last item, [B, K].
        items: numbers of the items, [B, K]; below 0: an empty slot.
        groups: group of each item, [B, K]; items of one group tire of each other.
        gains: what an item's logit gains from the last item, by the groups of both, [groups, groups].
        before: group of each customer's last item before the list, [B]; -1: none.
        effects: what items do to each other.
        can_click: which items can be clicked at all, [B, K]; the others never are.

    Raises:
        ValueError: lists have more items than slots that can be looked at.

    """
    size = items.shape[1]
    if size > len(effects.examination):
        raise ValueError(f"lists of {size} items: customers look at {len(effects.examination)} slots at most")
    is_item = items >= 0
    if effects.fatigue:
        appeal = appeal - effects.fatigue * same_above(groups, is_item=is_item)
    if effects.complements:
        last = np.concatenate([before[:, None], groups], axis=1)[:, :, None]
    else:
        last = np.broadcast_to(before[:, None, None], (len(items), size + 1, 1))
    gain = np.where(last >= 0, gains[last, groups[:, None, :]], 0.0)
    is_open: Bools = is_item & np.asarray(can_click)
    if not effects.repeats:
        is_open = is_open & (same_above(items, is_item=is_item) == 0)
    table: Floats = 1 / (1 + np.exp(-(appeal[:, None, :] + gain)))
    result: Floats = np.where(is_open[:, None, :], table, 0.0)
    return result


def expected_clicks(
    truth: ShopTruth,
    users: ArrayLike,
    items: ArrayLike,
    timestamps: ArrayLike,
    *,
    last_items: ArrayLike = -1,
    effects: ListEffects | None = None,
) -> Floats:
    """Return the probability of a click on each slot of a list for each customer, [B, K]; see `click_table`."""
    effects = effects or ListEffects()
    table = click_table(truth, users, items, timestamps, last_items=last_items, effects=effects)
    return click_probabilities(table, effects.examination)


def expected_purchases(
    truth: ShopTruth,
    users: ArrayLike,
    items: ArrayLike,
    timestamps: ArrayLike,
    *,
    last_items: ArrayLike = -1,
    effects: ListEffects | None = None,
) -> Floats:
    """Return the probability of a purchase from each slot of a list for each customer, [B, K]; see `click_table`."""
    clicks = expected_clicks(truth, users, items, timestamps, last_items=last_items, effects=effects)
    users, rows = np.asarray(users), np.asarray(items, dtype=np.int64)
    times: Ints = np.asarray(timestamps)
    return clicks * truth.purchase_probability(users[:, None], rows, times[:, None])


def click_probabilities(table: ArrayLike, examination: ArrayLike) -> Floats:
    """Return the probability of a click on each slot, [B, K], given a click table."""
    return last_clicks(table, examination)[0]


def last_clicks(table: ArrayLike, examination: ArrayLike) -> tuple[Floats, Floats]:
    """Return the probability of a click on each slot, [B, K], and that each slot is the last click, [B, K + 1].

    Entry 0 of the latter is the probability of no click at all; slots count from 1.
    """
    table, looks = np.asarray(table, dtype=np.float64), np.asarray(examination)
    last_slot = np.zeros(table.shape[:2])  # probability that each slot was clicked last, so far
    last_slot[:, 0] = 1.0
    result = np.empty((len(table), table.shape[2]))
    for slot in range(table.shape[2]):
        chances = looks[slot] * table[:, :, slot]
        result[:, slot] = (last_slot * chances).sum(axis=1)
        last_slot *= 1 - chances
        last_slot[:, slot + 1] = result[:, slot]
    return result, last_slot


def any_click_probability(table: ArrayLike, examination: ArrayLike) -> Floats:
    """Return the probability of at least one click, [B], given a click table: until then, nothing was clicked."""
    table = np.asarray(table, dtype=np.float64)
    chances = np.asarray(examination)[: table.shape[2]] * table[:, 0, :]
    result: Floats = 1 - np.prod(1 - chances, axis=1)
    return result


def sample_clicks(table: ArrayLike, examination: ArrayLike, looks: Floats, chances: Floats) -> Bools:
    """Return which slots are clicked, bool [B, K], given a click table and uniform numbers.

    Args:
        table: the click table.
        examination: probability that a customer looks at each slot.
        looks: uniform numbers that decide whether a customer looks, [B, K].
        chances: uniform numbers that decide whether a customer who looks clicks, [B, K].

    """
    table = np.asarray(table, dtype=np.float64)
    clicks = np.zeros((len(table), table.shape[2]), dtype=np.bool_)
    last_slot = np.zeros(len(table), dtype=np.int64)
    every = np.arange(len(table))
    for slot in range(table.shape[2]):
        is_click = (looks[:, slot] < np.asarray(examination)[slot]) & (chances[:, slot] < table[every, last_slot, slot])
        clicks[:, slot] = is_click
        last_slot = np.where(is_click, slot + 1, last_slot)
    return clicks


def same_above(values: NDArray[np.integer], *, is_item: Bools) -> Ints:
    """Return how many slots above have the same value, [B, K]; slots that have no item do not count."""
    is_same = (values[:, :, None] == values[:, None, :]) & is_item[:, None, :]
    result: Ints = np.tril(is_same, k=-1).sum(axis=2)
    return result
