"""Constraints: the allow-lists and exclusions of a batch of requests, compiled for a walk over a trie.

A node is **live** for a request if at least one allowed and not excluded item lies under it. The search only ever
steps to live nodes, so it cannot run into a dead end.

Allow-lists become sets of sorted positions. They tell whether an allowed item lies under a node, and only as much of
them is read as a search needs (sets_on_demand.py). Exclusions are few, so the nodes that they empty are listed once
for each depth, and a step masks those among its candidates. Neither touches more than the candidates and the
exclusions, however large the catalogue is.

Shapes: B requests, W beams, D children of a beam, J items generated so far, M levels, N items of the trie. R and T are
numbers of rows and of queries.
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
class _EmptyNodes:
    """Nodes of one depth that exclusions empty: request rows, nodes and their parents, each [T] int64."""

    rows: Tensor
    nodes: Tensor
    parents: Tensor


class Constraints:
    """The allow-lists and exclusions of a batch, over the positions of a trie."""

    def __init__(self, trie: PrefixTrie, batch: SequenceBatch, allowed: SetsOnDemand | None = None) -> None:
        """Compile the allow-lists and exclusions of a batch.

        Args:
            trie: the code sequences of the catalogue.
            batch: the requests, with their allow-lists and exclusions.
            allowed: one set of allowed positions for all requests or one for each; replaces the batch's allow-lists.

        Raises:
            ValueError: `allowed` has another number of sets, or was built for another trie.

        """
        self._trie = trie
        self.num_requests = batch.num_requests
        self._device = batch.items.offsets.device
        if allowed is not None:
            if allowed.num_sets not in (1, batch.num_requests):
                raise ValueError(
                    f"{allowed.num_sets} sets for {batch.num_requests} requests; pass one set, or one for each request"
                )
            if allowed.items is not trie.items and not torch.equal(allowed.items, trie.items):
                raise ValueError("these sets are positions of another trie; build the filters again for this trie")
        if allowed is None and batch.allowed is not None:
            allowed = MaskSets(batch.allowed, trie)
        self._allowed = allowed
        self._excluded = self._excluded_keys(batch)
        self._empty_nodes = self._nodes_without_items()

    @property
    def has_allow_lists(self) -> bool:
        """Whether there are allow-lists. Without them, only live children are left after `mask_excluded`."""
        return self._allowed is not None

    def live(self, rows: Tensor, nodes: Tensor, num_others: int | Tensor = 0) -> Tensor:
        """Return whether more than `num_others` items under `nodes` are legal for requests `rows`, all of one shape."""
        starts, ends = self._trie.item_ranges(nodes)
        others = self._excluded_between(rows, starts, ends) + num_others
        if self._allowed is None:
            return ends - starts > others
        return self._allowed.has_more_than(self._set_of(rows), starts, ends, others)

    def allows_positions(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Return whether requests `rows [T]` may have the items at `positions [T]`, bool [T]."""
        keys = rows * self._trie.num_items + positions
        is_legal = ~torch.isin(keys, self._excluded)
        if self._allowed is not None:
            is_legal &= self._allowed.contains(self._set_of(rows), positions)
        return is_legal

    def mask_positions(self, values: Tensor) -> Tensor:
        """Return `values [B, N]`, one for each position, with 0 at items that the request may not have."""
        size = self._trie.num_items
        if self._allowed is not None:
            rows = torch.arange(len(values), device=values.device)[:, None]
            positions = torch.arange(size, device=values.device).expand(len(values), -1)
            rows = self._set_of(rows.expand_as(positions))
            values = values * self._allowed.contains(rows, positions)
        return values.index_put((self._excluded // size, self._excluded % size), values.new_zeros(()))

    def allows(self, rows: Tensor, nodes: Tensor) -> Tensor:
        """Return whether the allow-list of requests `rows` contains an item under `nodes`.

        Both have the same shape, int64. Node -1 is dead: it has no item.
        """
        if self._allowed is None:
            return nodes >= 0
        starts, ends = self._trie.item_ranges(nodes.clamp(min=0))
        ends = ends.where(nodes >= 0, starts)
        return self._allowed.has_more_than(self._set_of(rows), starts, ends, torch.zeros_like(starts))

    def mask_disallowed(self, scores: Tensor, rows: Tensor, parents: Tensor, children: Children, *, depth: int) -> None:
        """Write -inf into the scores of children without an allowed item, in place.

        Args:
            scores: [R, W, D], of the children of requests `rows`.
            rows: [R] int64, numbers of requests.
            parents: [R, W] int64, nodes of the given depth; -1 for dead beams.
            children: the children of all B requests.
            depth: depth of `parents` in the trie.

        """
        if self._allowed is None:
            return
        is_small = self._allowed.is_small(self._set_of(rows))
        picked_rows = is_small.nonzero()[:, 0]
        if len(picked_rows):  # the members show which children are live, however many children there are
            above = parents[picked_rows].flatten()
            starts, ends = self._trie.item_ranges(above.clamp(min=0))
            sets = self._set_of(rows[picked_rows]).repeat_interleave(parents.shape[1])
            limits = torch.full_like(starts, self._trie.num_items)
            beam, positions = self._allowed.members(sets, starts, ends.where(above >= 0, starts), limits)
            slots = self._slots(self._trie.ancestors(positions, depth=depth + 1), above[beam], children)
            live = torch.zeros((len(above), scores.shape[2]), dtype=torch.bool, device=scores.device)
            live[beam, slots] = True
            scores[picked_rows] = scores[picked_rows].masked_fill(
                ~live.view(len(picked_rows), *scores.shape[1:]), -torch.inf
            )
        picked_rows = (~is_small).nonzero()[:, 0]
        if len(picked_rows):
            nodes = children.nodes[rows[picked_rows]].masked_fill(scores[picked_rows] == -torch.inf, -1)
            requests = rows[picked_rows][:, None, None].expand_as(nodes)
            scores[picked_rows] = scores[picked_rows].masked_fill(~self.allows(requests, nodes), -torch.inf)

    def mask_excluded(
        self, scores: Tensor, parents: Tensor, children: Children, *, depth: int, item_positions: Tensor
    ) -> None:
        """Write -inf into the scores of children whose items are all excluded, in place.

        Children without an allowed item are found by `allows` and `mask_disallowed`.

        Args:
            scores: [B, W, D], of the children.
            parents: [B, W] int64, nodes of the given depth.
            children: the children of the parents.
            depth: depth of `parents` in the trie.
            item_positions: [B, W, J] int64, items that a beam already contains and may not repeat.

        """
        empty = self._empty_nodes[depth]
        if empty.rows.numel():
            which, beams = (parents[empty.rows] == empty.parents[:, None]).nonzero(as_tuple=True)
            slots = self._slots(empty.nodes[which], empty.parents[which], children)
            scores[empty.rows[which], beams, slots] = -torch.inf
        if item_positions.shape[2]:
            self._mask_repeated(scores, parents, children, depth, item_positions)

    def items_of_leaves(self, leaves: Tensor, *, limit: int, item_positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first live items of each leaf, at least `limit` of them if there are that many.

        Args:
            leaves: [B, W] int64; -1 for dead beams.
            limit: number of items of a leaf that the caller needs.
            item_positions: [B, W, J] int64, items that a beam already contains; they are skipped.

        Returns:
            Beams [T] (flat indices into [B, W]) and positions [T], int64.

        """
        beams = (leaves.flatten() >= 0).nonzero()[:, 0]
        rows = beams // leaves.shape[1]
        starts, ends = self._trie.item_ranges(leaves.flatten()[beams])
        limits = self._excluded_between(rows, starts, ends) + item_positions.shape[2] + limit
        if self._allowed is None:
            lengths = torch.minimum(ends - starts, limits)
            beams, positions = beams.repeat_interleave(lengths), ranges(starts, lengths)
        else:
            which, positions = self._allowed.members(self._set_of(rows), starts, ends, limits)
            beams = beams[which]
        rows = beams // leaves.shape[1]
        live = self._excluded_between(rows, positions, positions + 1) == 0
        live &= (item_positions.flatten(0, 1)[beams] != positions[:, None]).all(dim=1)
        return beams[live], positions[live]

    def _set_of(self, rows: Tensor) -> Tensor:
        """Return the number of the allowed set of each of the requests `rows`."""
        assert self._allowed is not None
        return rows if self._allowed.num_sets > 1 else torch.zeros_like(rows)

    def _excluded_keys(self, batch: SequenceBatch) -> Tensor:
        """Return sorted distinct keys, request * N + position, of excluded items that would otherwise be allowed."""
        if batch.excluded is None:
            return torch.empty(0, dtype=torch.int64, device=self._device)
        is_item = batch.excluded.values > 0
        rows, items = batch.excluded.row_ids()[is_item], batch.excluded.values[is_item]
        positions = self._trie.positions[items].long()
        is_in_trie = positions >= 0  # an item that the trie does not contain needs no exclusion
        rows, positions = rows[is_in_trie], positions[is_in_trie]
        if self._allowed is not None:
            is_allowed = self._allowed.contains(self._set_of(rows), positions)
            rows, positions = rows[is_allowed], positions[is_allowed]
        keys: Tensor = torch.unique(rows * self._trie.num_items + positions)
        return keys

    def _nodes_without_items(self) -> list[_EmptyNodes]:
        """Return, for depths 1..M, the nodes that exclusions empty; a node may be listed once for each of its items."""
        size, levels = self._trie.num_items, self._trie.num_levels
        rows, positions = self._excluded // size, self._excluded % size
        nodes = torch.stack([self._trie.ancestors(positions, depth=depth) for depth in range(levels + 1)])
        empty = ~self.live(rows.expand(levels, -1), nodes[1:])
        return [
            _EmptyNodes(rows[is_empty], below[is_empty], above[is_empty])
            for is_empty, above, below in zip(empty, nodes[:-1], nodes[1:], strict=True)
        ]

    def _mask_repeated(
        self, scores: Tensor, parents: Tensor, children: Children, depth: int, item_positions: Tensor
    ) -> None:
        """Mask, in place, the children of which the beam already contains every live item."""
        safe = item_positions.clamp(min=0)
        nodes = self._trie.ancestors(safe, depth=depth + 1)
        num_same = (nodes[..., :, None] == nodes[..., None, :]).sum(-1)
        rows = torch.arange(len(parents), device=parents.device)[:, None, None].expand_as(nodes)
        empty = ~self.live(rows, nodes, num_same)
        empty &= self._trie.ancestors(safe, depth=depth) == parents[..., None]
        row, beam, _ = indices = empty.nonzero(as_tuple=True)
        slots = self._slots(nodes[indices], parents[row, beam], children)
        scores[row, beam, slots] = -torch.inf

    def _slots(self, nodes: Tensor, parents: Tensor, children: Children) -> Tensor:
        """Return the column of each of `nodes [T]` among the children of its parent."""
        if children.codes is None:
            return self._trie.codes[nodes].long()
        return nodes - self._trie.first_child[parents]

    def _excluded_between(self, rows: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
        """Return how many positions of start .. end - 1 requests `rows` exclude (all of one shape)."""
        base = rows * self._trie.num_items
        return torch.searchsorted(self._excluded, base + ends) - torch.searchsorted(self._excluded, base + starts)
