"""Lazily evaluated sets of trie positions, for allow-lists and filters that differ by request.

A search asks for few nodes of a trie whether anything allowed lies under them. The first words of a node's range
usually decide. So a set is a rule that computes its words. Only if some words have been read without a decision is the
whole set computed (materialised) as PositionSets, once.

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
from nextitem.decoding.position_sets import BITS, PositionLists, PositionSets, count_bits, pack_bits
from nextitem.decoding.trie import PrefixTrie

# Numbers of words of a range that are read before the whole set is computed: one, then eight, then 64 more.
_PROBE_WORDS = (1, 8, 64)
_MAX_SMALL_SET = 2**12  # members; a search reads all members of such a small set
_NUM_SINGLE_PROBES = 4  # positions of a mask that are read one by one before its first word


class SetsOnDemand(ABC):
    """R sets of positions 0 .. N - 1 of a trie.

    A query consists of tensors of one shape: `rows` (the number of the set) and numbers such as positions.

    Attributes:
        num_sets: number of sets (R).
        size: number of positions (N).
        items: [N], the items of the trie to which the positions belong. In another trie the same positions would mean
            other items.

    """

    def __init__(self, num_sets: int, *, items: Tensor) -> None:
        self.num_sets, self.size, self.items = num_sets, len(items), items
        device = items.device
        # The row of each set among the materialised sets, -1 if it is not among them, and these sets. Both are
        # replaced by one assignment, so that requests in other threads see a consistent pair.
        self._cache: tuple[Tensor, PositionSets | None] = (torch.full((num_sets,), -1, device=device), None)

    @abstractmethod
    def words_at(self, rows: Tensor, words: Tensor) -> Tensor:
        """Return the words with numbers `words` of sets `rows`, int32, as PositionSets stores them.

        Bits from position N on may have any value.
        """

    @abstractmethod
    def materialise(self, rows: Tensor) -> PositionSets:
        """Compute the whole sets `rows [R']`."""

    def contains(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Return whether each position is in the set, bool."""
        return (self.words_at(rows, positions // BITS) >> (positions % BITS)) & 1 > 0

    def has_more_than(self, rows: Tensor, starts: Tensor, ends: Tensor, counts: Tensor) -> Tensor:
        """Return whether more than `counts` positions of start .. end - 1 are in the set."""
        rows_T, starts_T, ends_T, counts_T = (part.flatten() for part in (rows, starts, ends, counts))
        num_members, word = torch.zeros_like(starts_T), starts_T // BITS
        open_queries = (starts_T < ends_T).nonzero()[:, 0]
        for span in _PROBE_WORDS:
            if not len(open_queries):
                break
            words = word[open_queries, None] + torch.arange(span, device=word.device)
            read_words = self._words_within(
                rows_T[open_queries, None], words, starts_T[open_queries, None], ends_T[open_queries, None]
            )
            num_members[open_queries] += count_bits(read_words).sum(1)
            word[open_queries] += span
            open_queries = open_queries[
                (num_members[open_queries] <= counts_T[open_queries])
                & (word[open_queries] * BITS < ends_T[open_queries])
            ]
        if len(open_queries):
            set_rows, sets = self._materialised(rows_T[open_queries])
            num_members[open_queries] = sets.count(set_rows, starts_T[open_queries], ends_T[open_queries])
        return (num_members > counts_T).view(rows.shape)

    def members(self, rows: Tensor, starts: Tensor, ends: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first `limits` members of each range [T].

        Returns, for all members of all ranges, the number of the query and the position, int64.
        """
        first = starts // BITS
        spans = ((ends - 1) // BITS - first + 1).masked_fill(starts >= ends, 0)
        queries = torch.arange(len(rows), device=rows.device)
        if int(spans.sum()) > max(sum(_PROBE_WORDS) * len(rows), 2**12):
            set_rows, sets = self._materialised(rows)
            return sets.members(set_rows, starts, ends, limits)
        query, word = queries.repeat_interleave(spans), ranges(first, spans)
        read_words = self._words_within(rows[query], word, starts[query], ends[query])
        which, bit = (read_words[:, None] >> torch.arange(BITS, device=rows.device) & 1).nonzero(as_tuple=True)
        query, positions = query[which], word[which] * BITS + bit
        before = offsets_of(torch.bincount(query, minlength=len(rows)))[query]
        is_within_limit = torch.arange(len(query), device=rows.device) - before < limits[query]
        return query[is_within_limit], positions[is_within_limit]

    def is_small(self, rows: Tensor) -> Tensor:
        """Return whether the set is already known to have few members.

        Then a search reads all its members, instead of testing each node for one.
        """
        set_rows, sets = self._cache
        if sets is None:
            return torch.zeros_like(rows, dtype=torch.bool)
        return (set_rows[rows] >= 0) & (sets.counts_before[:, -1][set_rows[rows]] <= _MAX_SMALL_SET)

    def _words_within(self, rows: Tensor, words: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
        """Return words of the sets, with the bits outside start .. end - 1 cleared; int64 below 2^32."""
        low, high = ((edge - words * BITS).clamp(0, BITS) for edge in (starts, ends))
        inside = (1 << high) - (1 << low)
        read_words = self.words_at(rows.expand_as(words), words.clamp(max=(self.size - 1) // BITS))
        return read_words.long() & inside

    def _materialised(self, rows: Tensor) -> tuple[Tensor, PositionSets]:
        """Return the row of each of the sets `rows [T]` among the materialised sets, and these sets.

        Sets that are missing are computed and added to the cache.
        """
        set_rows, sets = self._cache
        missing = torch.unique(rows[set_rows[rows] < 0])
        if sets is None or len(missing):
            fresh = self.materialise(missing)
            set_rows = set_rows.clone()
            set_rows[missing] = torch.arange(len(missing), device=rows.device) + (0 if sets is None else sets.num_sets)
            sets = fresh if sets is None else PositionSets.stacked([sets, fresh])
            self._cache = (set_rows, sets)
        return set_rows[rows], sets


class MaskSets(SetsOnDemand):
    """The sets of a `mask [R, items + 1]` of booleans over a trie's items."""

    def __init__(self, mask: Tensor, trie: PrefixTrie) -> None:
        super().__init__(len(mask), items=trie.items)
        self._mask = mask

    def words_at(self, rows: Tensor, words: Tensor) -> Tensor:
        """Return words of the sets, as the base class describes."""
        positions = words[..., None] * BITS + torch.arange(BITS, device=words.device)
        items = self.items[positions.clamp(max=self.size - 1)].long()
        return pack_bits(self._mask[rows[..., None], items].flatten(0, -2)).view(words.shape)

    def materialise(self, rows: Tensor) -> PositionSets:
        """Compute whole sets, as the base class describes."""
        return PositionSets.from_mask(self._mask[rows][:, self.items])

    def contains(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Return whether each position is in the set, bool."""
        return self._mask[rows, self.items[positions].long()]

    def has_more_than(self, rows: Tensor, starts: Tensor, ends: Tensor, counts: Tensor) -> Tensor:
        """Return whether more than `counts` positions of start .. end - 1 are in the set.

        A word costs 32 reads scattered over the mask, so a few positions are read one by one first.
        """
        near = starts[..., None] + torch.arange(_NUM_SINGLE_PROBES, device=starts.device)
        is_member = self.contains(rows[..., None], near.clamp(max=self.size - 1)) & (near < ends[..., None])
        answer = is_member.sum(-1) > counts
        rest = (~answer & (ends - starts > _NUM_SINGLE_PROBES)).nonzero(as_tuple=True)
        answer[rest] = super().has_more_than(rows[rest], starts[rest], ends[rest], counts[rest])
        return answer


class FilteredSets(SetsOnDemand):
    """Sets that are combined from stored ones: the intersection of groups, each of which is a union."""

    def __init__(self, stored_words: Tensor, lists: Jagged, rules: Tensor, *, items: Tensor) -> None:
        """Combine stored sets by rules.

        Args:
            stored_words: [S, words] int32, the words of the stored sets.
            lists: the positions of each small stored set as a list; an empty list for each large one.
            rules: [R, groups, terms] int64. A term is the number of a stored set, or ~number for its complement.
            items: [N], the items of the trie to which the positions belong.

        """
        super().__init__(len(rules), items=items)
        self._stored_words, self._rules, self._lists = stored_words, rules, lists
        is_listed = (rules >= 0) & (lists.lengths[rules.clamp(min=0)] > 0)
        # [R, groups]: all terms of the group are listed, so that all possible members of the set are known.
        self._has_lists = is_listed.all(2)
        self._members: PositionLists | None = None

    @classmethod
    def stacked(cls, parts: Sequence[FilteredSets]) -> FilteredSets:
        """Return the sets of several requests, one after another.

        Raises ValueError if the parts are not combined from the same stored sets.
        """
        if any(part._stored_words is not parts[0]._stored_words for part in parts):
            raise ValueError("these sets come from different filter indexes; build all of them from one FilterIndex")
        groups, terms = (max(part._rules.shape[side] for part in parts) for side in (1, 2))
        # The last group of a rule and the last term of a group may be repeated without effect.
        rules = [part._rules[:, torch.arange(groups).clamp(max=part._rules.shape[1] - 1)] for part in parts]
        rules = [rule[:, :, torch.arange(terms).clamp(max=rule.shape[2] - 1)] for rule in rules]
        return cls(parts[0]._stored_words, parts[0]._lists, torch.cat(rules), items=parts[0].items)

    def words_at(self, rows: Tensor, words: Tensor) -> Tensor:
        """Return words of the sets, as the base class describes."""
        stored, width = self._stored_words.view(-1), self._stored_words.shape[1]

        def words_of(term: Tensor) -> Tensor:
            flip = term >> 63  # all ones for a complement, otherwise zero
            return stored[(term ^ flip) * width + words] ^ flip.int()

        groups = [[words_of(terms[rows]) for terms in group.unbind(1)] for group in self._rules.unbind(1)]
        return reduce(and_, [reduce(or_, group) for group in groups])

    def materialise(self, rows: Tensor) -> PositionSets:
        """Compute whole sets, as the base class describes."""
        all_positions = torch.ones((1, self.size), dtype=torch.bool, device=rows.device)
        words = pack_bits(all_positions).repeat(len(rows), 1)
        for row, rule in enumerate(self._rules[rows].tolist()):
            for group in rule:
                parts = [
                    self._stored_words[term] if term >= 0 else ~self._stored_words[~term]
                    for term in dict.fromkeys(group)
                ]
                words[row] &= reduce(or_, parts)
        return PositionSets.from_words(words, size=self.size)

    def is_small(self, rows: Tensor) -> Tensor:
        """Return whether the set is known to have few members, because it was computed or because they are listed."""
        return self._has_lists.any(1)[rows] | super().is_small(rows)

    def has_more_than(self, rows: Tensor, starts: Tensor, ends: Tensor, counts: Tensor) -> Tensor:
        """Return whether more than `counts` positions of start .. end - 1 are in the set, counted in lists if known."""
        is_listed = self._has_lists.any(1)[rows]
        if not bool(is_listed.any()):
            return super().has_more_than(rows, starts, ends, counts)
        answer = torch.zeros_like(is_listed)
        answer[is_listed] = (
            self._small_sets().count(rows[is_listed], starts[is_listed], ends[is_listed]) > counts[is_listed]
        )
        rest = ~is_listed
        answer[rest] = super().has_more_than(rows[rest], starts[rest], ends[rest], counts[rest])
        return answer

    def members(self, rows: Tensor, starts: Tensor, ends: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first `limits` members of each range, as the base class; listed members are read from lists."""
        is_listed = self._has_lists.any(1)[rows]
        if not bool(is_listed.any()):
            return super().members(rows, starts, ends, limits)
        parts = []
        for mask, members in ((is_listed, self._small_sets().members), (~is_listed, super().members)):
            query, positions = members(rows[mask], starts[mask], ends[mask], limits[mask])
            parts.append((mask.nonzero()[:, 0][query], positions))
        query, positions = (torch.cat(part) for part in zip(*parts, strict=True))
        order = query.argsort(stable=True)
        return query[order], positions[order]

    def _small_sets(self) -> PositionLists:
        """Return the members of all sets with a listed group: those of its positions that all other groups contain."""
        if self._members is None:
            rows = self._has_lists.any(1).nonzero()[:, 0]
            terms = self._rules[rows, self._has_lists[rows].int().argmax(1)]
            lengths = self._lists.lengths[terms]
            candidates = self._lists.values[ranges(self._lists.offsets[terms].flatten(), lengths.flatten())]
            keys = torch.unique(rows.repeat_interleave(lengths.sum(1)) * self.size + candidates)
            self._members = PositionLists(keys[self.contains(keys // self.size, keys % self.size)], self.size)
        return self._members


class FilterIndex:
    """Named sets of items, stored as bits over the positions of a trie, from which a service combines its filters.

    The sets are valid for this trie only, as positions are. A search with another trie raises ValueError.
    """

    def __init__(self, trie: PrefixTrie, masks: Mapping[str, Tensor]) -> None:
        """Store the sets `masks`, name -> bool [items + 1], for `trie`."""
        self._items = trie.items
        self._numbers = {name: number for number, name in enumerate(masks, start=1)}
        all_positions = torch.ones((1, trie.num_items), dtype=torch.bool, device=trie.items.device)
        items = trie.items.long()
        self._stored_words = torch.cat(
            [pack_bits(all_positions), *(pack_bits(mask[items][None]) for mask in masks.values())]
        )
        self._lists = _short_lists(self._stored_words, trie.num_items)

    def allowed(self, any_of: Sequence[Sequence[str]] = (), none_of: Sequence[str] = ()) -> FilteredSets:
        """Return one set: the items that are in at least one set of each group, and in no forbidden set.

        [["shoes", "bags"], ["in stock"]] is (shoes or bags) and in stock.

        Args:
            any_of: groups of names of sets.
            none_of: names of forbidden sets.

        Raises:
            KeyError: there is no set of this name.

        """
        rule = [[self._numbers[name] for name in group] or [~0] for group in any_of]
        rule += [[~self._numbers[name]] for name in none_of]
        rule = rule or [[0]]
        max_terms = max(len(group) for group in rule)
        padded = [group + group[-1:] * (max_terms - len(group)) for group in rule]
        rules = torch.tensor([padded], device=self._stored_words.device)
        return FilteredSets(self._stored_words, self._lists, rules, items=self._items)


def _short_lists(stored_words: Tensor, size: int) -> Jagged:
    """Return the members of each stored set that has fewer than one in 256 positions; no members of larger sets."""
    counts = torch.stack([count_bits(words).sum(dtype=torch.int64) for words in stored_words])
    counts = counts.masked_fill(counts * 256 >= size, 0)
    members = [torch.empty(0, dtype=torch.int64, device=stored_words.device)]
    for row in counts.nonzero()[:, 0].tolist():
        word = stored_words[row].nonzero()[:, 0]
        which, bit = (stored_words[row][word, None] >> torch.arange(BITS, device=stored_words.device) & 1).nonzero(
            as_tuple=True
        )
        members.append(word[which] * BITS + bit)
    return Jagged.from_lengths(torch.cat(members), counts)
