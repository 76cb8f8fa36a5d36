"""PositionSets: which positions of a trie may be returned, as bits, with counts over any range in constant time.

A trie's nodes are ranges of positions, so what a filter leaves of a node is a count between two positions: words of 32
bits, and how many bits are set before each word. Filters that are kept as bits combine word by word, an eighth of a
byte an item, and nothing of the size of the catalogue is made anew but the counts, one a word.

Shapes: R sets, N positions, T queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nextitem.decoding.trie import PrefixTrie

_BITS = 32


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
        torch.cumsum(_ones(words), 1, dtype=torch.int32, out=before[:, 1:])
        return cls(words, before, size)

    @classmethod
    def from_mask(cls, mask: Tensor) -> Self:
        """The sets of a `mask [R, N]` of booleans."""
        return cls.from_words(packed(mask), size=mask.shape[1])

    @classmethod
    def stacked(cls, sets: Sequence[PositionSets]) -> PositionSets:
        """Sets of several requests, one after another."""
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
        word, bit = positions // _BITS, positions % _BITS
        last = self.words.shape[1] - 1
        part = self.words[rows, word.clamp(max=last)].long() & ((1 << bit) - 1)
        return self.before[rows, word] + _ones(part)

    def select(self, rows: Tensor, ranks: Tensor) -> Tensor:
        """The position of the `ranks`-th member (from 0) of set `rows`, [T] int64; it must have so many."""
        # One search over all sets: the counts of set r are moved up by r times more than any of them can be.
        span = self.size + 1
        base = torch.arange(self.num_sets, device=rows.device)[:, None] * span
        flat = (self.before[:, 1:] + base).flatten()
        word = torch.searchsorted(flat, ranks + rows * span, right=True) - rows * self.words.shape[1]
        rest = ranks - self.before[rows, word]
        bits = self.words[rows, word][:, None] >> torch.arange(_BITS, device=rows.device) & 1
        # The first bit with `rest` others before it that is set itself.
        found = (bits.cumsum(1) == rest[:, None] + 1).int().argmax(1)
        return word * _BITS + found


class Filters:
    """Named sets of items over the positions of a trie, kept as bits: what a service filters by.

    `masks`: name -> bool [items + 1]. They hold for this trie only, as positions do.
    """

    def __init__(self, trie: PrefixTrie, masks: Mapping[str, Tensor]) -> None:
        self._size = trie.num_items
        self._words = {name: packed(mask[trie.items.long()][None]) for name, mask in masks.items()}
        self._all = packed(torch.ones((1, self._size), dtype=torch.bool, device=trie.items.device))

    def allowed(self, any_of: Sequence[Sequence[str]] = (), none_of: Sequence[str] = ()) -> PositionSets:
        """One set: the items that are in at least one set of each group of `any_of`, and in none of `none_of`.

        [["shoes", "bags"], ["in stock"]] is (shoes or bags) and in stock. KeyError for a name that is not there.
        """
        words = self._all
        for group in any_of:
            either = torch.zeros_like(words)
            for name in group:
                either = either | self._words[name]
            words = words & either
        for name in none_of:
            words = words & ~self._words[name]
        return PositionSets.from_words(words, size=self._size)


def packed(mask: Tensor) -> Tensor:
    """`mask [R, N]` of booleans as words [R, ceil(N / 32)] int32."""
    padded = F.pad(mask, (0, -mask.shape[1] % _BITS)).view(len(mask), -1, 4, 8)
    # Bytes first, in small numbers; four of them are a word.
    octets = (padded.to(torch.uint8) << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(
        3, dtype=torch.uint8
    )
    return octets.view(torch.int32).squeeze(-1)


def _ones(words: Tensor) -> Tensor:
    """How many bits of the lower 32 of each word are set; int64, or uint8 where the words are int32 on a CPU."""
    if words.dtype == torch.int32 and words.device.type == "cpu":
        return torch.from_numpy(np.bitwise_count(words.numpy().view(np.uint32)))
    x = words.long() & 0xFFFFFFFF
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) & 0xFFFFFFFF) >> 24
