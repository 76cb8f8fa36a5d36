"""HistoryState: cached state of a model for histories that it has read, so that each new event costs one step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StaleStateError(ValueError):
    """A state belongs to another model or to other weights: its histories must be read again from the start."""


@dataclass(frozen=True, eq=False)
class HistoryState:
    """Cached state of one model for B histories.

    Attributes:
        lengths: number of events of each history that the model has read, from its first event on [B] int64.
        vectors: user vectors after these events [B, D]; None: the model has no user vectors, or nothing has been read.
        cache: further tensors of the model (hidden states; keys and values), name -> [B, ...].
        starts: index of the first event of each history that the cache covers [B] int64, as the window of the model may
            begin later than the history; None is stored as zeros.
        version: fingerprint of the model and its weights (Recommender.weights_fingerprint); "": nothing has been read.

    """

    lengths: Tensor
    vectors: Tensor | None = None
    cache: Mapping[str, Tensor] = field(default_factory=dict)
    starts: Tensor = field(default=None)  # type: ignore[assignment]
    version: str = ""

    def __post_init__(self) -> None:
        if self.starts is None:
            object.__setattr__(self, "starts", torch.zeros_like(self.lengths))
        for name, value in (("vectors", self.vectors), ("starts", self.starts), *self.cache.items()):
            if value is not None and value.shape[0] != self.lengths.shape[0]:
                raise ValueError(f"{name} has {value.shape[0]} rows, lengths has {self.lengths.shape[0]}")

    @classmethod
    def unread(cls, num_rows: int, *, device: torch.device | str = "cpu") -> HistoryState:
        """Return the state of `num_rows` histories of which no event has been read."""
        return cls(torch.zeros(num_rows, dtype=torch.int64, device=device))

    @classmethod
    def concat(cls, parts: Sequence[HistoryState]) -> HistoryState:
        """Return one state with the rows of several states of one model, in order.

        Caches [B, P, ...] are padded with zeros to the largest P; a part without read events gets zeros.
        Raises StaleStateError if the parts belong to different models or weights.
        """
        versions = {part.version for part in parts if bool((part.lengths > 0).any())}
        if len(versions) > 1:
            raise StaleStateError("states of different models or weights cannot be joined; read the histories again")
        shapes: dict[str, Tensor] = {}
        for part in parts:
            for name, value in part.cache.items():
                if name not in shapes or (value.dim() > 1 and value.shape[1] > shapes[name].shape[1]):
                    shapes[name] = value
        vectors = next((part.vectors for part in parts if part.vectors is not None), None)
        return cls(
            torch.cat([part.lengths for part in parts]),
            None if vectors is None else torch.cat([_vectors_like(part, vectors) for part in parts]),
            {name: torch.cat([_cache_like(part, name, like) for part in parts]) for name, like in shapes.items()},
            torch.cat([part.starts for part in parts]),
            next(iter(versions), parts[0].version),
        )

    @property
    def user_vectors(self) -> Tensor:
        """Return `vectors`; ValueError if the state has no user vectors."""
        if self.vectors is None:
            raise ValueError("this state has no user vectors; let a model with user vectors read the histories")
        return self.vectors

    @property
    def num_bytes(self) -> int:
        """Memory of all tensors, in bytes."""
        tensors = [self.lengths, self.starts, *self.cache.values(), *([] if self.vectors is None else [self.vectors])]
        return sum(value.numel() * value.element_size() for value in tensors)

    def check_version(self, version: str) -> None:
        """Raise StaleStateError if any event was read by a model of another version than `version`."""
        if self.version != version and bool((self.lengths > 0).any()):
            raise StaleStateError(
                "this state belongs to another model or to other weights; read the histories again from the start"
            )

    def new_events(self, lengths: Tensor) -> Tensor:
        """Return the number of unread events of each history, [B].

        `lengths [B]` are the full lengths of the histories. Raises ValueError if a history is shorter than the part
        that has been read.
        """
        num_new = lengths - self.lengths
        if bool((num_new < 0).any()):
            raise ValueError("a state has read more events than its history has; pass the full histories")
        return num_new

    def zeros(self, num_rows: int) -> HistoryState:
        """Return the state of `num_rows` histories of which nothing has been read, with tensors like these, zeros."""
        return self._map(lambda value: value.new_zeros(num_rows, *value.shape[1:]))

    def select(self, rows: Tensor) -> HistoryState:
        """Return the rows at the indices `rows [R]` (int64), in the order of `rows`."""
        return self._map(lambda value: value[rows])

    def to(self, device: torch.device | str) -> HistoryState:
        """Return the state on another device."""
        return self._map(lambda value: value.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> HistoryState:
        return replace(
            self,
            lengths=function(self.lengths),
            vectors=None if self.vectors is None else function(self.vectors),
            cache={name: function(value) for name, value in self.cache.items()},
            starts=function(self.starts),
        )


def weights_fingerprint(model: nn.Module, *facts: str) -> str:
    """Return a hash of a model's class, of `facts`, and of its weights, equal in every process.

    Counts of training events (buffers called popularity) are not hashed, as the encoding of a history does not depend
    on them.
    """
    digest = hashlib.blake2b(digest_size=16)
    for fact in (type(model).__module__, type(model).__qualname__, *facts):
        digest.update(fact.encode() + b"\0")
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and name.rpartition(".")[2] != "popularity":
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
            values = value.detach().cpu().reshape(-1)
            if values.stride(0) != 1:  # one value that was expanded counts as contiguous, but has no bytes to view
                values = values.clone(memory_format=torch.contiguous_format)
            digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _vectors_like(part: HistoryState, like: Tensor) -> Tensor:
    return like.new_zeros((len(part.lengths), *like.shape[1:])) if part.vectors is None else part.vectors


def _cache_like(part: HistoryState, name: str, like: Tensor) -> Tensor:
    """Return the tensor `name` of the part's cache, padded to the width of `like`; zeros if the part has none."""
    if name not in part.cache:
        return like.new_zeros((len(part.lengths), *like.shape[1:]))
    value = part.cache[name]
    missing = like.shape[1] - value.shape[1] if like.dim() > 1 else 0
    return F.pad(value, [0, 0] * (value.dim() - 2) + [0, missing]) if missing else value
