"""Jagged: a tensor of rows with different lengths, stored without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Jagged:
    """B rows of different lengths: row b is `values[offsets[b]:offsets[b + 1]]`.

    `values [T, ...]` has any dtype; `offsets [B + 1]` is int64, ascending from 0 to T. Only `to_padded` adds padding.
    """

    values: Tensor
    offsets: Tensor

    def __post_init__(self) -> None:
        if self.offsets.dtype != torch.int64 or self.offsets.dim() != 1 or self.offsets.numel() == 0:
            raise ValueError(f"offsets must be int64 [B + 1], got {self.offsets.dtype} {tuple(self.offsets.shape)}")
        if int(self.offsets[0]) != 0 or int(self.offsets[-1]) != self.values.shape[0]:
            raise ValueError(
                f"offsets must rise from 0 to {self.values.shape[0]}, "
                f"got {int(self.offsets[0])} to {int(self.offsets[-1])}"
            )
        if bool((self.offsets[1:] < self.offsets[:-1]).any()):
            raise ValueError("offsets must not fall")

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[int]], *, dtype: torch.dtype = torch.int64) -> Jagged:
        """Return a Jagged with the rows of Python lists."""
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        values = torch.tensor([value for row in rows for value in row], dtype=dtype)
        return cls(values, offsets_of(lengths))

    @classmethod
    def from_lengths(cls, values: Tensor, lengths: Tensor) -> Jagged:
        """Return a Jagged from the concatenated rows `values [T, ...]` and their lengths `lengths [B]`."""
        return cls(values, offsets_of(lengths))

    @classmethod
    def from_padded(cls, padded: Tensor, lengths: Tensor) -> Jagged:
        """Return a Jagged with the first `lengths[b]` entries of each row b of `padded [B, L, ...]` (right padding)."""
        is_real = torch.arange(padded.shape[1], device=padded.device)[None, :] < lengths[:, None]
        return cls(padded[is_real], offsets_of(lengths))

    @classmethod
    def concat(cls, parts: Sequence[Jagged]) -> Jagged:
        """Return the rows of all parts, in order."""
        return cls.from_lengths(torch.cat([part.values for part in parts]), torch.cat([part.lengths for part in parts]))

    @property
    def num_rows(self) -> int:
        """Number of rows (B)."""
        return self.offsets.shape[0] - 1

    @cached_property
    def lengths(self) -> Tensor:
        """Length of each row, [B] int64."""
        with torch.inference_mode(False):  # what is kept may be read by a later step with gradients
            return self.offsets[1:] - self.offsets[:-1]

    def row_ids(self) -> Tensor:
        """Return the row that each value belongs to, [T] int64."""
        rows = torch.arange(self.num_rows, device=self.offsets.device)
        return rows.repeat_interleave(self.lengths, output_size=self.values.shape[0])

    def to_padded(self, length: int | None = None, *, fill: float = 0, align: str = "left") -> Tensor:
        """Return the rows as one padded tensor, [B, length, ...].

        Args:
            length: width of the result, by default the length of the longest row. A longer row keeps its **last**
                `length` values.
            fill: the padding value.
            align: "left" puts the padding to the right of the values, "right" to their left.

        """
        width = length if length is not None else int(self.lengths.max()) if self.num_rows else 0
        tails = self.last(width)
        shape = (self.num_rows, width, *self.values.shape[1:])
        padded = torch.full(shape, fill, dtype=self.values.dtype, device=self.values.device)
        rows = tails.row_ids()
        columns = torch.arange(tails.values.shape[0], device=rows.device) - tails.offsets[rows]
        if align == "right":
            columns = columns + width - tails.lengths[rows]
        padded[rows, columns] = tails.values
        return padded

    def last(self, count: int | Tensor) -> Jagged:
        """Return the last `count` values of each row, or all values of a shorter row.

        `count` is one number, or a tensor [B] with one number for each row.
        """
        lengths = self.lengths
        if self.num_rows == 0 or bool((lengths <= count).all()):
            return self
        new_lengths = lengths.clamp(max=count)
        return self._slice(self.offsets[1:] - new_lengths, new_lengths)

    def drop_last(self, count: int) -> Jagged:
        """Return each row without its last `count` values."""
        new_lengths = (self.lengths - count).clamp(min=0)
        return self._slice(self.offsets[:-1], new_lengths)

    def select(self, rows: Tensor) -> Jagged:
        """Return the rows at the indices `rows [R]` (int64), in the order of `rows`; repeats are allowed."""
        return self._slice(self.offsets[:-1][rows], self.lengths[rows])

    def append(self, other: Jagged) -> Jagged:
        """Return each row followed by the same row of `other`."""
        rows = torch.cat([self.row_ids(), other.row_ids()])
        order = rows.argsort(stable=True)
        return Jagged.from_lengths(torch.cat([self.values, other.values])[order], self.lengths + other.lengths)

    def with_values(self, values: Tensor) -> Jagged:
        """Return rows of the same lengths with other `values [T, ...]`."""
        if values.shape[0] != self.values.shape[0]:
            raise ValueError(f"{values.shape[0]} values for rows of {self.values.shape[0]}")
        return _unchecked(values, self.offsets)

    def to(self, device: torch.device | str) -> Jagged:
        """Return the rows on another device."""
        return _unchecked(self.values.to(device), self.offsets.to(device))

    def to_lists(self) -> list[list[int]]:
        """Return the rows as Python lists, for messages and tests."""
        offsets = self.offsets.tolist()
        values = self.values.tolist()
        return [values[start:end] for start, end in pairwise(offsets)]

    def _slice(self, starts: Tensor, lengths: Tensor) -> Jagged:
        return _unchecked(self.values[ranges(starts, lengths)], offsets_of(lengths))


def _unchecked(values: Tensor, offsets: Tensor) -> Jagged:
    """Return rows whose offsets are right by construction: to read them again takes longer than to compute them."""
    rows = object.__new__(Jagged)
    object.__setattr__(rows, "values", values)
    object.__setattr__(rows, "offsets", offsets)
    return rows


def offsets_of(lengths: Tensor) -> Tensor:
    """Return the offsets [B + 1] of rows with the lengths `lengths [B]`, int64."""
    offsets = torch.zeros(lengths.numel() + 1, dtype=torch.int64, device=lengths.device)
    torch.cumsum(lengths, 0, out=offsets[1:])
    return offsets


def ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """Return the concatenated index ranges starts[b] .. starts[b] + lengths[b] - 1, [sum(lengths)] int64."""
    total = int(lengths.sum())
    shift = (starts - offsets_of(lengths)[:-1]).repeat_interleave(lengths, output_size=total)
    return torch.arange(total, device=starts.device) + shift
