"""Constraints: what a batch of requests forbids, compiled for a walk over a trie.

A node is **live** for a request while at least one allowed and not excluded item lies under it. The search only
ever steps to live nodes, so it can not run into a dead end. Allow-lists become sets of sorted positions, of which as
much is read as a search asks for (sets_on_demand.py): whether an allowed item lies under a node. Exclusions are few, so
they are turned round: for each depth the nodes that they empty are listed once, and a step strikes those among its
candidates. Neither touches more than the candidates and the exclusions, however large the catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import ranges
from nextitem.decoding.sets_on_demand import MaskSets, SetsOnDemand
from nextitem.decoding.trie import PrefixTrie
from nextitem.ops.trie_step import Children


@dataclass(frozen=True, eq=False)
class _Dead:
    """Nodes of one depth that exclusions empty: request rows, nodes and their parents, each [T] int64."""

    rows: Tensor
    nodes: Tensor
    parents: Tensor


class Constraints:
    """The allow-lists and exclusions of `batch`, over the positions of `trie`."""

    def __init__(self, trie: PrefixTrie, batch: SequenceBatch, allowed: SetsOnDemand | None = None) -> None:
        """`allowed`: one set for all requests or one for each, in place of the batch's allow-lists.

        ValueError where it is another number of sets, or was made for another trie.
        """
        self._trie = trie
        self._device = batch.items.offsets.device
        if allowed is not None:
            if allowed.num_sets not in (1, batch.num_requests):
                raise ValueError(
                    f"{allowed.num_sets} sets for {batch.num_requests} requests; give one, or one for each"
                )
            if allowed.items is not trie.items and not torch.equal(allowed.items, trie.items):
                raise ValueError("these sets are positions of another trie; make the filters anew for this one")
        if allowed is None and batch.allowed is not None:
            allowed = MaskSets(batch.allowed, trie)
        self._allowed = allowed
        self._excluded = self._excluded_keys(batch)
        self._dead = self._emptied()

    @property
    def has_allow_lists(self) -> bool:
        """Where not, `strike` alone leaves live children only."""
        return self._allowed is not None

    def live(self, rows: Tensor, nodes: Tensor, besides: int | Tensor = 0) -> Tensor:
        """bool: more than `besides` items under `nodes` may answer requests `rows` (same shape, int64)."""
        starts, ends = self._trie.item_ranges(nodes)
        others = self._excluded_between(rows, starts, ends) + besides
        if self._allowed is None:
            return ends - starts > others
        return self._allowed.more_than(self._set_of(rows), starts, ends, others)

    def allows(self, rows: Tensor, nodes: Tensor) -> Tensor:
        """bool: an allow-list of requests `rows` has an item under `nodes` (same shape, int64; -1: dead, none)."""
        if self._allowed is None:
            return nodes >= 0
        starts, ends = self._trie.item_ranges(nodes.clamp(min=0))
        ends = ends.where(nodes >= 0, starts)
        return self._allowed.more_than(self._set_of(rows), starts, ends, torch.zeros_like(starts))

    def forbid(self, scores: Tensor, rows: Tensor, parents: Tensor, children: Children, *, depth: int) -> None:
        """Writes -inf into `scores [R, W, D]` at children of requests `rows [R]` that allow-lists have nothing of."""
        if self._allowed is None:
            return
        few = self._allowed.few(self._set_of(rows))
        some = few.nonzero()[:, 0]
        if len(some):  # members say which children are live, however many children there are
            above = parents[some].flatten()
            starts, ends = self._trie.item_ranges(above.clamp(min=0))
            sets = self._set_of(rows[some]).repeat_interleave(parents.shape[1])
            limits = torch.full_like(starts, self._trie.num_items)
            beam, positions = self._allowed.members(sets, starts, ends.where(above >= 0, starts), limits)
            slots = self._slots(self._trie.ancestors(positions, depth=depth + 1), above[beam], children)
            live = torch.zeros((len(above), scores.shape[2]), dtype=torch.bool, device=scores.device)
            live[beam, slots] = True
            scores[some] = scores[some].masked_fill(~live.view(len(some), *scores.shape[1:]), -torch.inf)
        some = (~few).nonzero()[:, 0]
        if len(some):
            nodes = children.nodes[rows[some]].masked_fill(scores[some] == -torch.inf, -1)
            asked = rows[some][:, None, None].expand_as(nodes)
            scores[some] = scores[some].masked_fill(~self.allows(asked, nodes), -torch.inf)

    def strike(self, scores: Tensor, parents: Tensor, children: Children, *, depth: int, held: Tensor) -> None:
        """Writes -inf into `scores [B, W, D]` at children that exclusions leave nothing of; `allows` tells the others.

        `parents [B, W]` have the given depth; a beam may not repeat the positions that it holds, `held
        [B, W, J]`.
        """
        dead = self._dead[depth]
        if dead.rows.numel():
            which, beams = (parents[dead.rows] == dead.parents[:, None]).nonzero(as_tuple=True)
            slots = self._slots(dead.nodes[which], dead.parents[which], children)
            scores[dead.rows[which], beams, slots] = -torch.inf
        if held.shape[2]:
            self._strike_held(scores, parents, children, depth, held)

    def items_of_leaves(self, leaves: Tensor, *, limit: int, held: Tensor) -> tuple[Tensor, Tensor]:
        """The first `limit` or more live items of each leaf of `leaves [B, W]` (-1: dead).

        Returns beams [T] (flat indices into [B, W]) and positions [T], int64. A beam leaves out what it holds.
        """
        beams = (leaves.flatten() >= 0).nonzero()[:, 0]
        rows = beams // leaves.shape[1]
        starts, ends = self._trie.item_ranges(leaves.flatten()[beams])
        limits = self._excluded_between(rows, starts, ends) + held.shape[2] + limit
        if self._allowed is None:
            lengths = torch.minimum(ends - starts, limits)
            beams, positions = beams.repeat_interleave(lengths), ranges(starts, lengths)
        else:
            which, positions = self._allowed.members(self._set_of(rows), starts, ends, limits)
            beams = beams[which]
        rows = beams // leaves.shape[1]
        live = self._excluded_between(rows, positions, positions + 1) == 0
        live &= (held.flatten(0, 1)[beams] != positions[:, None]).all(dim=1)
        return beams[live], positions[live]

    def _set_of(self, rows: Tensor) -> Tensor:
        """Which set holds for requests `rows`."""
        assert self._allowed is not None
        return rows if self._allowed.num_sets > 1 else torch.zeros_like(rows)

    def _excluded_keys(self, batch: SequenceBatch) -> Tensor:
        """Sorted distinct keys request * N + position of excluded items that would else be allowed."""
        if batch.excluded is None:
            return torch.empty(0, dtype=torch.int64, device=self._device)
        real = batch.excluded.values > 0
        rows, items = batch.excluded.row_ids()[real], batch.excluded.values[real]
        positions = self._trie.positions[items].long()
        known = positions >= 0  # an item that the trie has lost needs no exclusion
        rows, positions = rows[known], positions[known]
        if self._allowed is not None:
            counted = self._allowed.holds(self._set_of(rows), positions)
            rows, positions = rows[counted], positions[counted]
        keys: Tensor = torch.unique(rows * self._trie.num_items + positions)
        return keys

    def _emptied(self) -> list[_Dead]:
        """Per depth 1..M the nodes that exclusions empty; a node may be listed once for each of its items."""
        size, levels = self._trie.num_items, self._trie.num_levels
        rows, positions = self._excluded // size, self._excluded % size
        nodes = torch.stack([self._trie.ancestors(positions, depth=depth) for depth in range(levels + 1)])
        empty = ~self.live(rows.expand(levels, -1), nodes[1:])
        return [
            _Dead(rows[gone], below[gone], above[gone])
            for gone, above, below in zip(empty, nodes[:-1], nodes[1:], strict=True)
        ]

    def _strike_held(self, scores: Tensor, parents: Tensor, children: Children, depth: int, held: Tensor) -> None:
        safe = held.clamp(min=0)
        nodes = self._trie.ancestors(safe, depth=depth + 1)
        same = (nodes[..., :, None] == nodes[..., None, :]).sum(-1)
        rows = torch.arange(len(parents), device=parents.device)[:, None, None].expand_as(nodes)
        empty = ~self.live(rows, nodes, same)
        empty &= self._trie.ancestors(safe, depth=depth) == parents[..., None]
        row, beam, _ = where = empty.nonzero(as_tuple=True)
        slots = self._slots(nodes[where], parents[row, beam], children)
        scores[row, beam, slots] = -torch.inf

    def _slots(self, nodes: Tensor, parents: Tensor, children: Children) -> Tensor:
        """Where nodes [T] stand among the children of their parents."""
        if children.codes is None:
            return self._trie.codes[nodes].long()
        return nodes - self._trie.first_child[parents]

    def _excluded_between(self, rows: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
        base = rows * self._trie.num_items
        return torch.searchsorted(self._excluded, base + ends) - torch.searchsorted(self._excluded, base + starts)
