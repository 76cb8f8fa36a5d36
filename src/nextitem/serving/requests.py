"""Requests to a served model, as the engine reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class HistoryEvent:
    """One event of a history.

    Attributes:
        item_id: external id of the item.
        action: what the user did; None: not known.
        timestamp_ms: time of the event, in milliseconds since 1970; None: not known.
        columns: further columns of the event that the data set declares (price, device, ...).

    """

    item_id: str
    action: str | None = None
    timestamp_ms: int | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ServedRequest:
    """One request: whose list, from which history, and under which conditions.

    Attributes:
        user_id: external id of the user, known from training or not; None: a visitor.
        history: events of the user, oldest first; they replace those that the server knows. None: the events of the
            data set and of the store.
        k: number of items to return, at least 1.
        exclude: external ids of items that must not be returned.
        only: conditions column=value on the items table; an item must satisfy all of them.
        exclude_seen: whether to exclude the items of the history; None: for the known history of a user, unless
            `repeats` of the data set is true; for a history in the request, always.
        context: features of the request, by the names in `catalog.requests`.
        candidates: external ids of items to order, instead of recommending any; `k`, `exclude`, `only` and
            `exclude_seen` do not apply then.
        explain: whether the answer explains the list.
        guide_weight: weight of the guide of a generator, 0 to 1; None: as chosen in training.
        objective: name of the objective that orders the list, for models that have several; None: as trained.
        is_preview: whether the user will not see the list, so that it must not become training data.

    """

    user_id: str | None = None
    history: tuple[HistoryEvent, ...] | None = None
    k: int = 10
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    exclude_seen: bool | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    candidates: tuple[str, ...] | None = None
    explain: bool = False
    guide_weight: float | None = None
    objective: str | None = None
    is_preview: bool = False

    def without(self, item_ids: Sequence[str]) -> ServedRequest:
        """Return the request with more items excluded."""
        return replace(self, exclude=(*self.exclude, *item_ids)) if item_ids else self
