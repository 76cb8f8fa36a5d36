"""PositionSets: which positions of a trie may be returned, as bits, with counts over any range in constant time.

A trie's nodes are ranges of positions, so what a filter leaves of a node is a count between two positions: words of 32
bits, and how many bits are set before each word. To make the counts every word has to be read once; sets_on_demand.py
does so only where a few words do not tell.

Shapes: R sets, N positions, T queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nextitem.core.jagged import ranges

BITS = 32  # of a word


@dataclass(frozen=True, eq=False)
class PositionSets:
    """R sets of positions 0 .. N - 1.

    words   [R, ceil(N / 32)] int32; position p is bit p % 32 of word p // 32, unused bits are 0
    before  [R, words + 1] int32: how many positions are in the set before each word
    size    N
    """

    words: Tensor
    before: Tensor
    size: int

    @classmethod
    def from_words(cls, words: Tensor, *, size: int) -> Self:
        """Counts what `words [R, W]` hold."""
        before = torch.zeros((len(words), words.shape[1] + 1), dtype=torch.int32, device=words.device)
        torch.cumsum(ones(words), 1, dtype=torch.int32, out=before[:, 1:])
        return cls(words, before, size)

    @classmethod
    def from_mask(cls, mask: Tensor) -> Self:
        """The sets of a `mask [R, N]` of booleans."""
        return cls.from_words(packed(mask), size=mask.shape[1])

    @classmethod
    def stacked(cls, sets: Sequence[PositionSets]) -> PositionSets:
        """Sets one after another."""
        return cls(torch.cat([each.words for each in sets]), torch.cat([each.before for each in sets]), sets[0].size)

    @property
    def num_sets(self) -> int:
        """R."""
        return len(self.words)

    def count(self, rows: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
        """How many positions of start .. end - 1 are in set `rows`, all of one shape; int64."""
        return self.rank(rows, ends) - self.rank(rows, starts)

    def rank(self, rows: Tensor, positions: Tensor) -> Tensor:
        """How many positions of set `rows` lie before each of `positions`, all of one shape; int64."""
        word, bit = positions // BITS, positions % BITS
        last = self.words.shape[1] - 1
        part = self.words[rows, word.clamp(max=last)].long() & ((1 << bit) - 1)
        return self.before[rows, word].long() + ones(part)

    def members(self, rows: Tensor, starts: Tensor, ends: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        """The first `limits` members of each range [T]: which query each answers, and the positions, int64."""
        low = self.rank(rows, starts)
        lengths = torch.minimum(self.rank(rows, ends) - low, limits)
        query = torch.arange(len(rows), device=rows.device).repeat_interleave(lengths)
        return query, self.select(rows[query], ranges(low, lengths))

    def select(self, rows: Tensor, ranks: Tensor) -> Tensor:
        """The position of the `ranks`-th member (from 0) of set `rows`, [T] int64; it must have so many."""
        # One search over all sets: the counts of set r are moved up by r times more than any of them can be.
        span = self.size + 1
        base = torch.arange(self.num_sets, device=rows.device)[:, None] * span
        flat = (self.before[:, 1:] + base).flatten()
        word = torch.searchsorted(flat, ranks + rows * span, right=True) - rows * self.words.shape[1]
        rest = ranks - self.before[rows, word]
        bits = self.words[rows, word][:, None] >> torch.arange(BITS, device=rows.device) & 1
        # The first bit with `rest` others before it that is set itself.
        found = (bits.cumsum(1) == rest[:, None] + 1).int().argmax(1)
        return word * BITS + found


@dataclass(frozen=True, eq=False)
class PositionLists:
    """The same for sets of few members: `keys [members]` int64, set * N + position, rising."""

    keys: Tensor
    size: int

    def count(self, rows: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
        """How many positions of start .. end - 1 are in set `rows`, all of one shape; int64."""
        base = rows * self.size
        return torch.searchsorted(self.keys, base + ends) - torch.searchsorted(self.keys, base + starts)

    def members(self, rows: Tensor, starts: Tensor, ends: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        """The first `limits` members of each range [T]: which query each answers, and the positions, int64."""
        first = torch.searchsorted(self.keys, rows * self.size + starts)
        lengths = torch.minimum(self.count(rows, starts, ends), limits)
        query = torch.arange(len(rows), device=rows.device).repeat_interleave(lengths)
        return query, self.keys[ranges(first, lengths)] - rows[query] * self.size


def packed(mask: Tensor) -> Tensor:
    """`mask [R, N]` of booleans as words [R, ceil(N / 32)] int32."""
    words = -(-mask.shape[1] // BITS)
    padded = F.pad(mask, (0, words * BITS - mask.shape[1])).view(len(mask), words, 4, 8)
    # Bytes first, in small numbers; four of them are a word.
    octets = (padded.to(torch.uint8) << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(
        3, dtype=torch.uint8
    )
    return octets.view(torch.int32).squeeze(-1)


def ones(words: Tensor) -> Tensor:
    """How many bits are set of int32 `words`, or of int64 ones whose upper half is 0; int64, or uint8 on a CPU."""
    if words.device.type == "cpu":
        unsigned = np.uint32 if words.dtype == torch.int32 else np.uint64
        return torch.from_numpy(np.bitwise_count(words.contiguous().numpy().view(unsigned)))
    x = words.long() & 0xFFFFFFFF
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) & 0xFFFFFFFF) >> 24
