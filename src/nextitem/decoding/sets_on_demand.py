"""Sets of positions that are worked out where a search asks: what allow-lists and filters of a request's own cost.

A search asks for few of a trie's nodes whether anything allowed lies under them, and the first words of a node's range
mostly tell. So a set is a rule for its words; only where words enough have been read in vain is all of it made, as
PositionSets, once.

Shapes: R sets, N positions, T queries, S stored sets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import and_, or_

import torch
from torch import Tensor

from nextitem.core.jagged import Jagged, offsets_of, ranges
from nextitem.decoding.position_sets import BITS, PositionLists, PositionSets, ones, packed
from nextitem.decoding.trie import PrefixTrie

# Words that are read of a range before all of its set is made: one, then eight, then 64 more.
_LOOKS = (1, 8, 64)
_FEW = 2**12  # members; a set of so few is asked for them
_NEAR = 4  # positions of a mask that are read one by one before its first word


class SetsOnDemand(ABC):
    """R sets of positions 0 .. N - 1. Queries are `rows` (which set) and numbers of one shape.

    `items` [N] are those of the trie whose positions they are: with another one they would mean other items.
    """

    def __init__(self, num_sets: int, *, items: Tensor) -> None:
        self.num_sets, self.size, self.items = num_sets, len(items), items
        device = items.device
        # Which row of the made sets each one is, -1 before it is made. Replaced as one, for requests in other threads.
        self._made: tuple[Tensor, PositionSets | None] = (torch.full((num_sets,), -1, device=device), None)

    @abstractmethod
    def words_at(self, rows: Tensor, words: Tensor) -> Tensor:
        """Those words of set `rows`, as PositionSets has them, int32; bits from N on are anything."""

    @abstractmethod
    def made(self, rows: Tensor) -> PositionSets:
        """The sets `rows [R']`, whole."""

    def holds(self, rows: Tensor, positions: Tensor) -> Tensor:
        """bool: the position is in the set."""
        return (self.words_at(rows, positions // BITS) >> (positions % BITS)) & 1 > 0

    def more_than(self, rows: Tensor, starts: Tensor, ends: Tensor, counts: Tensor) -> Tensor:
        """bool: more than `counts` positions of start .. end - 1 are in the set."""
        rows_T, starts_T, ends_T, counts_T = (part.flatten() for part in (rows, starts, ends, counts))
        found, word = torch.zeros_like(starts_T), starts_T // BITS
        left = (starts_T < ends_T).nonzero()[:, 0]
        for span in _LOOKS:
            if not len(left):
                break
            words = word[left, None] + torch.arange(span, device=word.device)
            here = self._within(rows_T[left, None], words, starts_T[left, None], ends_T[left, None])
            found[left] += ones(here).sum(1)
            word[left] += span
            left = left[(found[left] <= counts_T[left]) & (word[left] * BITS < ends_T[left])]
        if len(left):
            places, sets = self._whole(rows_T[left])
            found[left] = sets.count(places, starts_T[left], ends_T[left])
        return (found > counts_T).view(rows.shape)

    def members(self, rows: Tensor, starts: Tensor, ends: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        """The first `limits` members of each range [T]: which query each answers, and the positions, int64."""
        first = starts // BITS
        spans = ((ends - 1) // BITS - first + 1).masked_fill(starts >= ends, 0)
        queries = torch.arange(len(rows), device=rows.device)
        if int(spans.sum()) > max(sum(_LOOKS) * len(rows), 2**12):
            places, sets = self._whole(rows)
            return sets.members(places, starts, ends, limits)
        query, word = queries.repeat_interleave(spans), ranges(first, spans)
        here = self._within(rows[query], word, starts[query], ends[query])
        which, bit = (here[:, None] >> torch.arange(BITS, device=rows.device) & 1).nonzero(as_tuple=True)
        query, positions = query[which], word[which] * BITS + bit
        before = offsets_of(torch.bincount(query, minlength=len(rows)))[query]
        kept = torch.arange(len(query), device=rows.device) - before < limits[query]
        return query[kept], positions[kept]

    def few(self, rows: Tensor) -> Tensor:
        """bool: it is known that the set has few members, which may be asked for instead of where they may lie."""
        places, sets = self._made
        if sets is None:
            return torch.zeros_like(rows, dtype=torch.bool)
        return (places[rows] >= 0) & (sets.before[:, -1][places[rows]] <= _FEW)

    def _within(self, rows: Tensor, words: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
        """The words of the sets without what lies outside start .. end - 1, int64 below 2^32."""
        low, high = ((edge - words * BITS).clamp(0, BITS) for edge in (starts, ends))
        inside = (1 << high) - (1 << low)
        found = self.words_at(rows.expand_as(words), words.clamp(max=(self.size - 1) // BITS))
        return found.long() & inside

    def _whole(self, rows: Tensor) -> tuple[Tensor, PositionSets]:
        """Whole sets that hold those of `rows [T]`, and where each one is among them."""
        places, sets = self._made
        missing = torch.unique(rows[places[rows] < 0])
        if sets is None or len(missing):
            fresh = self.made(missing)
            places = places.clone()
            places[missing] = torch.arange(len(missing), device=rows.device) + (0 if sets is None else sets.num_sets)
            sets = fresh if sets is None else PositionSets.stacked([sets, fresh])
            self._made = (places, sets)
        return places[rows], sets


class MaskSets(SetsOnDemand):
    """The sets of a `mask [R, items + 1]` of booleans over a trie's items."""

    def __init__(self, mask: Tensor, trie: PrefixTrie) -> None:
        super().__init__(len(mask), items=trie.items)
        self._mask = mask

    def words_at(self, rows: Tensor, words: Tensor) -> Tensor:
        """As the base class says."""
        positions = words[..., None] * BITS + torch.arange(BITS, device=words.device)
        items = self.items[positions.clamp(max=self.size - 1)].long()
        return packed(self._mask[rows[..., None], items].flatten(0, -2)).view(words.shape)

    def made(self, rows: Tensor) -> PositionSets:
        """As the base class says."""
        return PositionSets.from_mask(self._mask[rows][:, self.items])

    def holds(self, rows: Tensor, positions: Tensor) -> Tensor:
        """As the base class says."""
        return self._mask[rows, self.items[positions].long()]

    def more_than(self, rows: Tensor, starts: Tensor, ends: Tensor, counts: Tensor) -> Tensor:
        """A word is 32 reads all over the mask, so a few positions are read one by one before."""
        near = starts[..., None] + torch.arange(_NEAR, device=starts.device)
        found = self.holds(rows[..., None], near.clamp(max=self.size - 1)) & (near < ends[..., None])
        answer = found.sum(-1) > counts
        left = (~answer & (ends - starts > _NEAR)).nonzero(as_tuple=True)
        answer[left] = super().more_than(rows[left], starts[left], ends[left], counts[left])
        return answer


class FilteredSets(SetsOnDemand):
    """Sets that are put together of stored ones: all of some groups, of each group any one."""

    def __init__(self, stored: Tensor, lists: Jagged, rules: Tensor, *, items: Tensor) -> None:
        """`stored [S, words]` int32, and `lists`, the positions of each again, or none where they are many; `rules
        [R, groups, names]`: rows of them, ~row for what is not in it.
        """
        super().__init__(len(rules), items=items)
        self._stored, self._rules, self._lists = stored, rules, lists
        short = (rules >= 0) & (lists.lengths[rules.clamp(min=0)] > 0)
        self._listed = short.all(2)  # [R, groups]: of a group of few, all that can be in the set are known
        self._members: PositionLists | None = None

    @classmethod
    def stacked(cls, parts: Sequence[FilteredSets]) -> FilteredSets:
        """Sets of several requests, one after another; ValueError where they are not put together of the same ones."""
        if any(part._stored is not parts[0]._stored for part in parts):
            raise ValueError("these sets come from different Filters")
        groups, names = (max(part._rules.shape[side] for part in parts) for side in (1, 2))
        # The last group, and the last name of a group, may stand there as often as one likes.
        rules = [part._rules[:, torch.arange(groups).clamp(max=part._rules.shape[1] - 1)] for part in parts]
        rules = [rule[:, :, torch.arange(names).clamp(max=rule.shape[2] - 1)] for rule in rules]
        return cls(parts[0]._stored, parts[0]._lists, torch.cat(rules), items=parts[0].items)

    def words_at(self, rows: Tensor, words: Tensor) -> Tensor:
        """As the base class says."""
        stored, width = self._stored.view(-1), self._stored.shape[1]

        def of(name: Tensor) -> Tensor:
            flip = name >> 63  # all ones for a complement, else zero
            return stored[(name ^ flip) * width + words] ^ flip.int()

        groups = [[of(names[rows]) for names in group.unbind(1)] for group in self._rules.unbind(1)]
        return reduce(and_, [reduce(or_, group) for group in groups])

    def made(self, rows: Tensor) -> PositionSets:
        """As the base class says."""
        real = torch.ones((1, self.size), dtype=torch.bool, device=rows.device)
        words = packed(real).repeat(len(rows), 1)
        for row, rule in enumerate(self._rules[rows].tolist()):
            for group in rule:
                parts = [self._stored[name] if name >= 0 else ~self._stored[~name] for name in dict.fromkeys(group)]
                words[row] &= reduce(or_, parts)
        return PositionSets.from_words(words, size=self.size)

    def few(self, rows: Tensor) -> Tensor:
        """Sets whose members are stored are small, too."""
        return self._listed.any(1)[rows] | super().few(rows)

    def more_than(self, rows: Tensor, starts: Tensor, ends: Tensor, counts: Tensor) -> Tensor:
        """As the base class says; counted where members are stored."""
        known = self._listed.any(1)[rows]
        if not bool(known.any()):
            return super().more_than(rows, starts, ends, counts)
        answer = torch.zeros_like(known)
        answer[known] = self._of_few().count(rows[known], starts[known], ends[known]) > counts[known]
        rest = ~known
        answer[rest] = super().more_than(rows[rest], starts[rest], ends[rest], counts[rest])
        return answer

    def members(self, rows: Tensor, starts: Tensor, ends: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        """As the base class says; read where members are stored."""
        known = self._listed.any(1)[rows]
        if not bool(known.any()):
            return super().members(rows, starts, ends, limits)
        found = []
        for some, members in ((known, self._of_few().members), (~known, super().members)):
            query, positions = members(rows[some], starts[some], ends[some], limits[some])
            found.append((some.nonzero()[:, 0][query], positions))
        query, positions = (torch.cat(part) for part in zip(*found, strict=True))
        order = query.argsort(stable=True)
        return query[order], positions[order]

    def _of_few(self) -> PositionLists:
        """The members of the sets that have a group of few: that group's which all the other groups have too."""
        if self._members is None:
            rows = self._listed.any(1).nonzero()[:, 0]
            names = self._rules[rows, self._listed[rows].int().argmax(1)]
            lengths = self._lists.lengths[names]
            candidates = self._lists.values[ranges(self._lists.offsets[names].flatten(), lengths.flatten())]
            keys = torch.unique(rows.repeat_interleave(lengths.sum(1)) * self.size + candidates)
            self._members = PositionLists(keys[self.holds(keys // self.size, keys % self.size)], self.size)
        return self._members


class Filters:
    """Named sets of items over the positions of a trie, kept as bits: what a service filters by.

    `masks`: name -> bool [items + 1]. They hold for this trie only, as positions do; a search by another one refuses
    them.
    """

    def __init__(self, trie: PrefixTrie, masks: Mapping[str, Tensor]) -> None:
        self._items = trie.items
        self._numbers = {name: number for number, name in enumerate(masks, start=1)}
        every = torch.ones((1, trie.num_items), dtype=torch.bool, device=trie.items.device)
        items = trie.items.long()
        self._stored = torch.cat([packed(every), *(packed(mask[items][None]) for mask in masks.values())])
        self._lists = _short_lists(self._stored, trie.num_items)

    def allowed(self, any_of: Sequence[Sequence[str]] = (), none_of: Sequence[str] = ()) -> FilteredSets:
        """One set: the items that are in at least one set of each group of `any_of`, and in none of `none_of`.

        [["shoes", "bags"], ["in stock"]] is (shoes or bags) and in stock. KeyError for a name that is not there.
        """
        rule = [[self._numbers[name] for name in group] or [~0] for group in any_of]
        rule += [[~self._numbers[name]] for name in none_of]
        rule = rule or [[0]]
        most = max(len(group) for group in rule)
        padded = [group + group[-1:] * (most - len(group)) for group in rule]
        rules = torch.tensor([padded], device=self._stored.device)
        return FilteredSets(self._stored, self._lists, rules, items=self._items)


def _short_lists(stored: Tensor, size: int) -> Jagged:
    """The members of stored sets of which fewer than one in 256 positions is one; of others none."""
    counts = torch.stack([ones(words).sum(dtype=torch.int64) for words in stored])
    counts = counts.masked_fill(counts * 256 >= size, 0)
    found = [torch.empty(0, dtype=torch.int64, device=stored.device)]
    for row in counts.nonzero()[:, 0].tolist():
        word = stored[row].nonzero()[:, 0]
        which, bit = (stored[row][word, None] >> torch.arange(BITS, device=stored.device) & 1).nonzero(as_tuple=True)
        found.append(word[which] * BITS + bit)
    return Jagged.from_lengths(torch.cat(found), counts)
