"""SequenceBatch: a batch of recommendation requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from nextitem.core.history_state import HistoryState
from nextitem.core.jagged import Jagged

# Candidate feature of training examples from an undated log: how many of the candidate's events in the log are the
# example's own target. Event counts subtract them; in a dated log, events are counted up to the request's time instead.
OWN_EVENTS = "own_events"


@dataclass(frozen=True, eq=False)
class SequenceBatch:
    """A batch of B recommendation requests.

    It contains all data of a request, so that no signature has to grow when a request gets more data.

    Attributes:
        items: histories, oldest event first: item ids, Jagged int64.
        user_ids: [B] int64, stable keys of users (Users.keys); 0: an unknown visitor; None if users are anonymous.
        actions: action codes of the histories (Catalog.events), Jagged int64, same offsets as items; 0: unknown.
        timestamps: event times of the histories, Jagged int64, milliseconds, same offsets as items.
        features: further columns of the histories (Catalog.events), name -> Jagged, same offsets as items.
        shown_items: items that the user was shown before the request (impressions), oldest first, Jagged int64, or None
            if impressions are not logged. Items that the user then clicked are in `items`, too.
        shown_times: times of `shown_items`, Jagged int64, milliseconds.
        shown_labels: labels of `shown_items` (Catalog.labels), name -> Jagged float32; NaN: not known. Labels
            arrive later than the impression, so a reader must wait for them.
        request_times: [B] int64, milliseconds.
        context: features of the requests (Catalog.requests), name -> [B], or Jagged for lists.
        targets: item ids to predict, Jagged int64 (training and evaluation only).
        candidates: items to rank, Jagged int64; candidate_features and candidate_labels have the same offsets. A label
            above 0 is positive. NaN means unknown: such candidates are skipped.
        allowed: bool [1, N + 1] or [B, N + 1]: only these items may be returned; None: all items.
        excluded: items that must not be returned, Jagged int64 (seen items, block lists); None: no items.
        state: cached model state for the already processed part of each history (roles.Incremental), or None.

    """

    items: Jagged
    user_ids: Tensor | None = None
    actions: Jagged | None = None
    timestamps: Jagged | None = None
    features: dict[str, Jagged] = field(default_factory=dict)
    shown_items: Jagged | None = None
    shown_times: Jagged | None = None
    shown_labels: dict[str, Jagged] = field(default_factory=dict)
    request_times: Tensor | None = None
    context: dict[str, Any] = field(default_factory=dict)
    targets: Jagged | None = None
    candidates: Jagged | None = None
    candidate_features: dict[str, Jagged] = field(default_factory=dict)
    candidate_labels: dict[str, Jagged] = field(default_factory=dict)
    allowed: Tensor | None = None
    excluded: Jagged | None = None
    state: HistoryState | None = None

    def __post_init__(self) -> None:
        for name, rows in self._row_counts():
            if rows != self.num_requests:
                raise ValueError(f"{name} has {rows} rows, the histories have {self.num_requests}")
        num_events = self.items.values.shape[0]
        for name, jagged in (("actions", self.actions), ("timestamps", self.timestamps), *self.features.items()):
            if jagged is not None and jagged.values.shape[0] != num_events:
                raise ValueError(f"{name} must share the histories' offsets")

    @property
    def num_requests(self) -> int:
        """Number of requests (B)."""
        return self.items.num_rows

    def select(self, rows: Tensor) -> SequenceBatch:
        """Return the requests at the indices `rows [R]` (int64), in the order of `rows`."""
        selected = replace(self, allowed=None, state=None)._map(
            lambda jagged: jagged.select(rows), lambda dense: dense[rows]
        )
        if self.state is not None:
            selected = replace(selected, state=self.state.select(rows))
        if self.allowed is None:
            return selected
        is_shared = self.allowed.shape[0] == 1 and self.num_requests != 1
        return replace(selected, allowed=self.allowed if is_shared else self.allowed[rows])

    def split(self, size: int) -> Iterator[SequenceBatch]:
        """Yield the requests in order, as batches of at most `size` requests."""
        for start in range(0, self.num_requests, size):
            yield self.select(torch.arange(start, min(start + size, self.num_requests)))

    def sample(self, count: int) -> SequenceBatch:
        """Return at most `count` requests, evenly spaced from the first to the last; with `count` 1, the first."""
        if count >= self.num_requests:
            return self
        # Integer arithmetic: with more than 2**24 requests, a float32 of torch.linspace can exceed the last index.
        return self.select(torch.arange(count) * (self.num_requests - 1) // max(1, count - 1))

    @classmethod
    def concat(cls, parts: Sequence[SequenceBatch], *, fill: bool = False) -> SequenceBatch:
        """Return one batch with the requests of all `parts`, in order.

        If any batch has a state, the histories of a batch without a state count as unread.

        Args:
            parts: the batches to concatenate.
            fill: add columns that a batch lacks, with missing values: 0 for codes and users, NaN for numbers, an empty
                list for lists. A request without a time gets the latest request time of the others. The events of a
                history without times get the time of their request.

        Raises:
            ValueError: the batches have different columns, and `fill` is false.

        """
        if fill:
            parts = _with_equal_columns(parts)

        def concatenate(values: list[Any]) -> Any:
            first = values[0]
            if isinstance(first, dict):
                if any(value.keys() != first.keys() for value in values):
                    raise ValueError("batches with different columns cannot be joined; use fill=True")
                return {name: concatenate([value[name] for value in values]) for name in first}
            if any((value is None) != (first is None) for value in values):
                raise ValueError("batches with different columns cannot be joined; use fill=True")
            if first is None:
                return None
            return Jagged.concat(values) if isinstance(first, Jagged) else torch.cat(values)

        columns = [entry.name for entry in fields(cls) if entry.name not in ("allowed", "state")]
        allowed = [part.allowed for part in parts]
        is_shared = allowed[0] is not None and allowed[0].shape[0] == 1 and all(mask is allowed[0] for mask in allowed)
        unread = [HistoryState.unread(part.num_requests, device=part.items.offsets.device) for part in parts]
        states = [part.state or blank for part, blank in zip(parts, unread, strict=True)]
        return cls(
            **{name: concatenate([getattr(part, name) for part in parts]) for name in columns},
            allowed=allowed[0] if is_shared else concatenate(allowed),
            state=HistoryState.concat(states) if any(part.state is not None for part in parts) else None,
        )

    def share(self, rank: int, count: int) -> SequenceBatch:
        """Return every `count`-th request, starting at index `rank`: the part of process `rank` of `count`."""
        return self.select(torch.arange(rank, self.num_requests, count))

    @property
    def loss_count(self) -> int:
        """Number of terms that the loss of a batch with targets is a mean over: the number of requests."""
        return self.num_requests

    def to(self, device: torch.device | str) -> SequenceBatch:
        """Return the batch on another device."""
        moved = replace(self, state=None)._map(lambda jagged: jagged.to(device), lambda dense: dense.to(device))
        return moved if self.state is None else replace(moved, state=self.state.to(device))

    def legal(self, num_items: int) -> Tensor | None:
        """Return which items each request may be answered with, bool [B, N + 1], or None if all items are allowed.

        It combines `allowed` and `excluded`; column 0, padding, is false.
        """
        if self.allowed is None and self.excluded is None:
            return None
        shape = (self.num_requests, num_items + 1)
        if self.allowed is not None:
            mask = self.allowed.expand(shape).clone()
        else:
            mask = torch.ones(shape, dtype=torch.bool, device=self.items.values.device)
        if self.excluded is not None:
            mask[self.excluded.row_ids(), self.excluded.values] = False
        mask[:, 0] = False
        return mask

    def last(self, count: int | Tensor) -> SequenceBatch:
        """Return the requests with the last `count` events of each history.

        `count` is one number, or a tensor [B] with one number for each history.
        """
        return replace(
            self,
            items=self.items.last(count),
            actions=None if self.actions is None else self.actions.last(count),
            timestamps=None if self.timestamps is None else self.timestamps.last(count),
            features={name: jagged.last(count) for name, jagged in self.features.items()},
        )

    def _row_counts(self) -> Iterator[tuple[str, int]]:
        for name, value in vars(self).items():
            if value is None or (name == "allowed" and value.shape[0] == 1):
                continue
            for part_name, part in value.items() if isinstance(value, dict) else ((name, value),):
                if isinstance(part, Jagged):
                    yield part_name, part.num_rows
                else:
                    yield part_name, (part.lengths if isinstance(part, HistoryState) else part).shape[0]

    def _map(self, on_jagged: Callable[[Jagged], Jagged], on_dense: Callable[[Tensor], Tensor]) -> SequenceBatch:
        def apply(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: apply(part) for name, part in value.items()}
            if value is None:
                return None
            return on_jagged(value) if isinstance(value, Jagged) else on_dense(value)

        return replace(self, **{entry.name: apply(getattr(self, entry.name)) for entry in fields(self)})


# Columns whose rows have the lengths of another column: a missing column is filled to the lengths of that one.
_ALIGNED_WITH = {
    "actions": "items",
    "timestamps": "items",
    "features": "items",
    "shown_times": "shown_items",
    "shown_labels": "shown_items",
    "candidate_features": "candidates",
    "candidate_labels": "candidates",
}


def _with_equal_columns(parts: Sequence[SequenceBatch]) -> list[SequenceBatch]:
    """Return the batches with all columns that any of them has; unknown values are stored as missing."""
    examples: dict[str, Any] = {}  # column -> its value in one of the batches, for type and width
    for part in parts:
        for entry in fields(part):
            value = getattr(part, entry.name)
            if isinstance(value, dict):
                examples[entry.name] = {**value, **examples.get(entry.name, {})}
            elif value is not None and entry.name != "state":
                examples.setdefault(entry.name, value)
    times = [part.request_times.max() for part in parts if part.request_times is not None and part.num_requests]
    latest = max(times, default=torch.zeros((), dtype=torch.int64))
    return [_add_missing_columns(part, examples, latest) for part in parts]


def _add_missing_columns(part: SequenceBatch, examples: dict[str, Any], latest: Tensor) -> SequenceBatch:
    """Return `part` with a column for each of `examples`; `latest` is the time of requests without a time."""
    columns: dict[str, Any] = {}
    for name, example in examples.items():
        value = getattr(part, name)
        if isinstance(example, dict):
            columns[name] = {
                key: value[key] if key in value else _missing_column(name, example[key], part) for key in example
            }
        elif value is None:
            columns[name] = _missing_column(name, example, part)
    if "request_times" in columns:
        columns["request_times"] = latest.expand(part.num_requests).clone()
    if "timestamps" in columns:
        now = columns.get("request_times", part.request_times)
        now = latest.expand(part.num_requests) if now is None else now
        columns["timestamps"] = part.items.with_values(now[part.items.row_ids()])
    return replace(part, **columns)


def _missing_column(name: str, example: Tensor | Jagged, part: SequenceBatch) -> Tensor | Jagged:
    """Return a column like `example` for the requests of `part`, in which every value is missing."""
    if name == "allowed":  # a batch without an allow-list allows every item
        assert isinstance(example, Tensor)
        return example.new_ones((part.num_requests, example.shape[1]))
    if isinstance(example, Tensor):
        return example.new_full((part.num_requests, *example.shape[1:]), _missing_value(example))
    rows = getattr(part, _ALIGNED_WITH[name]) if name in _ALIGNED_WITH else None
    if rows is None:  # lists with lengths of their own: targets, candidates, excluded items, lists of context
        rows = Jagged.from_lengths(example.values[:0], torch.zeros_like(part.items.lengths))
    return rows.with_values(example.values.new_full((len(rows.values),), _missing_value(example.values)))


def _missing_value(values: Tensor) -> float:
    return float("nan") if values.is_floating_point() else 0
