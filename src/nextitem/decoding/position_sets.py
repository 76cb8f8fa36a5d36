"""PositionSets: sets of trie positions that may be returned, stored as bits, with counts of any range in constant time.

The nodes of a trie are ranges of positions. So the number of items that a filter allows under a node is a count between
two positions. It is computed from words of 32 bits, and from how many bits are set before each word. To build these
counts every word has to be read once; sets_on_demand.py does so only if a few words do not decide.

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

BITS = 32  # bits of a word


@dataclass(frozen=True, eq=False)
class PositionSets:
    """R sets of positions 0 .. N - 1, one bit for each position.

    Attributes:
        words: [R, ceil(N / 32)] int32; position p is bit p % 32 of word p // 32, unused bits are 0.
        counts_before: [R, number of words + 1] int32, how many positions are in the set before each word.
        size: number of positions (N).

    """

    words: Tensor
    counts_before: Tensor
    size: int

    @classmethod
    def from_words(cls, words: Tensor, *, size: int) -> Self:
        """Return the sets of `words [R, W]` over `size` positions; counts the bits."""
        counts_before = torch.zeros((len(words), words.shape[1] + 1), dtype=torch.int32, device=words.device)
        torch.cumsum(count_bits(words), 1, dtype=torch.int32, out=counts_before[:, 1:])
        return cls(words, counts_before, size)

    @classmethod
    def from_mask(cls, mask: Tensor) -> Self:
        """Return the sets of a `mask [R, N]` of booleans."""
        return cls.from_words(pack_bits(mask), size=mask.shape[1])

    @classmethod
    def stacked(cls, sets: Sequence[PositionSets]) -> PositionSets:
        """Return all sets of `sets`, one after another; they must have the same number of positions."""
        return cls(
            torch.cat([part.words for part in sets]), torch.cat([part.counts_before for part in sets]), sets[0].size
        )

    @property
    def num_sets(self) -> int:
        """Return the number of sets (R)."""
        return len(self.words)

    def count(self, rows: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
        """Return how many positions of start .. end - 1 are in set `rows`, all of one shape; int64."""
        return self.rank(rows, ends) - self.rank(rows, starts)

    def rank(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Return how many positions of set `rows` lie before each of `positions`, all of one shape; int64."""
        word, bit = positions // BITS, positions % BITS
        last = self.words.shape[1] - 1
        part = self.words[rows, word.clamp(max=last)].long() & ((1 << bit) - 1)
        return self.counts_before[rows, word].long() + count_bits(part)

    def members(self, rows: Tensor, starts: Tensor, ends: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first `limits` members of each range [T].

        Returns, for all members of all ranges, the number of the query and the position, int64.
        """
        low = self.rank(rows, starts)
        lengths = torch.minimum(self.rank(rows, ends) - low, limits)
        query = torch.arange(len(rows), device=rows.device).repeat_interleave(lengths)
        return query, self.select(rows[query], ranges(low, lengths))

    def select(self, rows: Tensor, ranks: Tensor) -> Tensor:
        """Return the position of the `ranks`-th member (from 0) of set `rows`, [T] int64.

        Each set must have more members than the rank.
        """
        # One search over all sets: the counts of set r are moved up by r times more than any of them can be.
        span = self.size + 1
        base = torch.arange(self.num_sets, device=rows.device)[:, None] * span
        flat = (self.counts_before[:, 1:] + base).flatten()
        word = torch.searchsorted(flat, ranks + rows * span, right=True) - rows * self.words.shape[1]
        rest = ranks - self.counts_before[rows, word]
        bits = self.words[rows, word][:, None] >> torch.arange(BITS, device=rows.device) & 1
        # The first set bit with `rest` other set bits before it.
        bit = (bits.cumsum(1) == rest[:, None] + 1).int().argmax(1)
        return word * BITS + bit


@dataclass(frozen=True, eq=False)
class PositionLists:
    """Small sets of positions, stored as lists of their members; `count` and `members` as in PositionSets.

    Attributes:
        keys: [number of members] int64, set * N + position, ascending.
        size: number of positions (N).

    """

    keys: Tensor
    size: int

    def count(self, rows: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
        """Return how many positions of start .. end - 1 are in set `rows`, all of one shape; int64."""
        base = rows * self.size
        return torch.searchsorted(self.keys, base + ends) - torch.searchsorted(self.keys, base + starts)

    def members(self, rows: Tensor, starts: Tensor, ends: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first `limits` members of each range [T].

        Returns, for all members of all ranges, the number of the query and the position, int64.
        """
        first = torch.searchsorted(self.keys, rows * self.size + starts)
        lengths = torch.minimum(self.count(rows, starts, ends), limits)
        query = torch.arange(len(rows), device=rows.device).repeat_interleave(lengths)
        return query, self.keys[ranges(first, lengths)] - rows[query] * self.size


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a `mask [R, N]` of booleans into words [R, ceil(N / 32)] int32."""
    words = -(-mask.shape[1] // BITS)
    padded = F.pad(mask, (0, words * BITS - mask.shape[1])).view(len(mask), words, 4, 8)
    # Bytes first, in small numbers; four of them are a word.
    octets = (padded.to(torch.uint8) << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(
        3, dtype=torch.uint8
    )
    return octets.view(torch.int32).squeeze(-1)


def count_bits(words: Tensor) -> Tensor:
    """Return the number of set bits of each word, of the shape of `words`; int64, or uint8 on a CPU.

    Words are int32, or int64 with an upper half of 0.
    """
    if words.device.type == "cpu":
        unsigned = np.uint32 if words.dtype == torch.int32 else np.uint64
        return torch.from_numpy(np.bitwise_count(words.contiguous().numpy().view(unsigned)))
    x = words.long() & 0xFFFFFFFF
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) & 0xFFFFFFFF) >> 24
