"""HistoryState: what a model keeps of histories that it has read, so that a further event costs one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class HistoryState:
    """B histories, as one model has read them.

    lengths  events read of each history, counted over the whole history [B] int64
    vectors  user vectors after these events [B, D]
    cache    further tensors of the model (hidden states; keys and values), name -> [B, ...]
    """

    lengths: Tensor
    vectors: Tensor
    cache: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("vectors", self.vectors), *self.cache.items()):
            if value.shape[0] != self.lengths.shape[0]:
                raise ValueError(f"{name} has {value.shape[0]} rows, lengths has {self.lengths.shape[0]}")

    def new_events(self, lengths: Tensor) -> Tensor:
        """How many events of histories of these lengths [B] are unread; ValueError where a history is too short."""
        new = lengths - self.lengths
        if bool((new < 0).any()):
            raise ValueError("a state has read more events than its history has; give histories in full")
        return new

    def select(self, rows: Tensor) -> HistoryState:
        """The given rows [R] (int64), in the given order."""
        return self._map(lambda value: value[rows])

    def to(self, device: torch.device | str) -> HistoryState:
        """The same on another device."""
        return self._map(lambda value: value.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> HistoryState:
        kept = {name: function(value) for name, value in self.cache.items()}
        return HistoryState(function(self.lengths), function(self.vectors), kept)
