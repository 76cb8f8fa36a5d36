"""Guide: item probabilities of another model that steer a search while it descends a trie.

An item's score is a mixture of the generator's probability and the guide's. Before an item is complete, a search has
to decide which prefixes to keep. A prefix is judged by the mixture of its own probability and the largest guide
probability of the items below it:

    mixture(prefix) = (1 - w) p(prefix) + w max over items below of g(item)

Both parts can only fall from a prefix to an item below it, so the value of a prefix is never below that of an item
below it, and at a leaf it is exact. The largest guide probabilities form a heap, as the node scores of TDM do: a guide
alone is searched exactly at every width. With sums instead of maxima, long codes would need wide beams.

Items that a request forbids do not count.

Shapes: B requests, W beams, D children of a beam, N items of the catalogue, E entries of sparse probabilities.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nextitem.core.sparse_scores import SparseScores
from nextitem.decoding.constraints import Constraints
from nextitem.decoding.trie import PrefixTrie

Combination = Literal["mixture", "product"]

# A table of the nodes of a depth is stored for all requests up to this many entries, and up to so many for each query;
# beyond, entries are searched.
_TABLE_ENTRIES = 2**24
_TABLE_ENTRIES_BY_QUERY = 16
# In a product, each item has at least this part of the probability that it would have if all were equally likely.
_FLOOR = 1e-3
# In a mixture, the generator keeps this weight, so that it orders the items that the guide does not know.
_MIN_WEIGHT = 1e-9


@dataclass(frozen=True, eq=False)
class Guide:
    """Item probabilities that steer a search.

    Attributes:
        probabilities: [B, N + 1], or SparseScores: at least 0, and their sum over the items of a request is at most 1.
            A request whose probabilities are all 0 is searched without the guide.
        weight: weight of the guide, 0 to 1 (w).
        combine: "mixture": (1 - w) p + w g. "product": p^(1 - w) g^w, with a small constant added to g.
        can_be_silent: if false, a request whose probabilities are all 0 is searched with the guide's weight, too. So
            its scores can be compared with those of other requests.

    """

    probabilities: Tensor | SparseScores
    weight: float
    combine: Combination = "mixture"
    can_be_silent: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"the weight of a guide must be 0 to 1, got {self.weight}")
        values = self.probabilities.values if isinstance(self.probabilities, SparseScores) else self.probabilities
        if values.numel() and not bool((values >= 0).all() & (values <= 1).all()):
            raise ValueError("guide probabilities must be finite numbers from 0 to 1; use item_probabilities")

    @property
    def num_requests(self) -> int:
        """Number of requests (B)."""
        guide = self.probabilities
        return guide.items.num_rows if isinstance(guide, SparseScores) else len(guide)

    @property
    def num_items(self) -> int:
        """Number of items of the catalogue (N)."""
        guide = self.probabilities
        return guide.num_items if isinstance(guide, SparseScores) else guide.shape[1] - 1


class NodeGuide:
    """A guide over the nodes of a trie, for the requests of one search.

    Attributes:
        is_guided: [B] bool, whether the guide has a probability above 0 for any item that the request allows.

    """

    def __init__(self, guide: Guide, trie: PrefixTrie, constraints: Constraints) -> None:
        """Prepare the largest probability below each node.

        Raises:
            ValueError: the guide belongs to another number of requests or to another catalogue.

        """
        num_requests, num_items = constraints.num_requests, len(trie.positions) - 1
        if guide.num_requests != num_requests:
            raise ValueError(f"the guide has {guide.num_requests} rows for {num_requests} requests")
        if guide.num_items != num_items:
            raise ValueError(
                f"the guide scores a catalogue of {guide.num_items} items, and the generator's has {num_items}; use a "
                "guide that was trained on the same items"
            )
        self._combine, self._num_items = guide.combine, num_items
        layout = _sparse_layout if isinstance(guide.probabilities, SparseScores) else _dense_layout
        self._largest: _Largest = layout(guide.probabilities, trie, constraints)  # type: ignore[arg-type]
        self.is_guided = self._largest.is_guided()
        self._weight = torch.where(self.is_guided, guide.weight, 0.0 if guide.can_be_silent else guide.weight)

    def largest(self, nodes: Tensor, *, depth: int) -> Tensor:
        """Return the largest probability below nodes of the given depth, [B, W, D]; 0 below node -1."""
        return self._largest.below(nodes, depth=depth)

    def mix(self, log_probs: Tensor, nodes: Tensor, *, depth: int) -> Tensor:
        """Return the log of the mixture at nodes of the given depth, [B, W, D]; -inf if `log_probs` is -inf.

        `log_probs [B, W, D]` are the log-probabilities of the nodes; node -1 is no node.
        """
        return self._mixed(log_probs, self._largest.below(nodes, depth=depth), self._weight[:, None, None])

    def mix_items(self, log_probs: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Return the log of the mixture of items, [T].

        Args:
            log_probs: [T], log-probabilities.
            rows: [T] int64, the request of each.
            positions: [T] int64, the trie's position of each item.

        """
        return self._mixed(log_probs, self._largest.at(rows, positions), self._weight[rows])

    def _mixed(self, log_probs: Tensor, guide: Tensor, weight: Tensor) -> Tensor:
        if self._combine == "mixture":
            own_weight = (1 - weight).clamp(min=_MIN_WEIGHT)
            mixed = torch.logaddexp(log_probs + own_weight.log(), guide.log() + weight.log())
        else:
            mixed = (1 - weight) * log_probs + weight * (guide + _FLOOR / self._num_items).log()
        return mixed.masked_fill(log_probs == -torch.inf, -torch.inf)


class _Largest(ABC):
    """The largest probability below each node, per request; 0 for none."""

    @abstractmethod
    def is_guided(self) -> Tensor:
        """Return whether a request has any probability above 0, [B] bool."""

    @abstractmethod
    def at(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Return the probabilities [T] of the items at `positions [T]` for requests `rows [T]`."""

    @abstractmethod
    def below(self, nodes: Tensor, *, depth: int) -> Tensor:
        """Return the largest probability below `nodes [B, W, D]`, which have the given depth; 0 below node -1."""


def _from_table(table: Tensor, nodes: Tensor, *, first: int) -> Tensor:
    """Return the entries of a table [B, nodes of a depth] at `nodes [B, W, D]`; 0 for node -1."""
    columns = (nodes.flatten(1) - first).clamp(min=0)
    return table.gather(1, columns).view(nodes.shape).masked_fill_(nodes < 0, 0)


class _DenseLargest(_Largest):
    """Probabilities of all items: one table for each depth, computed from the items upwards."""

    def __init__(self, by_position: Tensor, trie: PrefixTrie) -> None:
        self._by_position, self._starts = by_position, trie.level_starts
        self._tables: dict[int, Tensor] = {}
        table, bounds = by_position, trie.item_starts
        for depth in range(trie.num_levels, 0, -1):
            first, end = trie.level_starts[depth], trie.level_starts[depth + 1] - 1
            sizes = bounds[first : end + 1].long().diff()
            if len(sizes) != table.shape[1] or bool((sizes != 1).any()):  # otherwise each node has one child
                owners = torch.arange(len(sizes), device=table.device).repeat_interleave(sizes)
                table = table.new_zeros(len(table), len(sizes)).scatter_reduce_(
                    1, owners.expand_as(table), table, "amax"
                )
            self._tables[depth], bounds = table, trie.first_child

    def is_guided(self) -> Tensor:
        return (self._by_position > 0).any(1)

    def at(self, rows: Tensor, positions: Tensor) -> Tensor:
        return self._by_position[rows, positions]

    def below(self, nodes: Tensor, *, depth: int) -> Tensor:
        return _from_table(self._tables[depth], nodes, first=self._starts[depth])


class _SparseLargest(_Largest):
    """Probabilities of some items, E entries by row and position; their cost does not depend on the catalogue."""

    def __init__(self, rows: Tensor, positions: Tensor, values: Tensor, trie: PrefixTrie, *, num_requests: int) -> None:
        self._rows, self._positions, self._values = rows, positions, values
        self._trie, self._num_requests = trie, num_requests

    def is_guided(self) -> Tensor:
        guided = torch.zeros(self._num_requests, dtype=torch.bool, device=self._rows.device)
        return guided.index_fill_(0, self._rows, True)

    def at(self, rows: Tensor, positions: Tensor) -> Tensor:
        size = self._trie.num_items
        return _look_up(self._rows * size + self._positions, self._values, rows * size + positions)

    def below(self, nodes: Tensor, *, depth: int) -> Tensor:
        first = self._trie.level_starts[depth]
        count = self._trie.level_starts[depth + 1] - 1 - first
        ancestors = self._trie.ancestors(self._positions, depth=depth)
        keys, groups = torch.unique_consecutive(self._rows * count + ancestors - first, return_inverse=True)
        largest = self._values.new_zeros(len(keys)).scatter_reduce_(0, groups, self._values, "amax")
        if self._num_requests * count <= min(_TABLE_ENTRIES, _TABLE_ENTRIES_BY_QUERY * nodes.numel()):
            table = largest.new_zeros(self._num_requests * count).index_copy_(0, keys, largest)
            return _from_table(table.view(self._num_requests, count), nodes, first=first)
        rows = torch.arange(len(nodes), device=nodes.device)[:, None, None]
        return _look_up(keys, largest, rows * count + nodes - first).masked_fill_(nodes < 0, 0)


def _look_up(keys: Tensor, values: Tensor, queries: Tensor) -> Tensor:
    """Return the value of each query among sorted `keys`, 0 if it is not among them."""
    if not len(keys):
        return values.new_zeros(queries.shape)
    place = torch.searchsorted(keys, queries).clamp(max=len(keys) - 1)
    return values[place].masked_fill(keys[place] != queries, 0)


def _dense_layout(probabilities: Tensor, trie: PrefixTrie, constraints: Constraints) -> _Largest:
    by_position = probabilities[:, trie.items.long()].float()
    return _DenseLargest(constraints.mask_positions(by_position), trie)


def _sparse_layout(probabilities: SparseScores, trie: PrefixTrie, constraints: Constraints) -> _Largest:
    rows, items, values = probabilities.items.row_ids(), probabilities.items.values, probabilities.values.float()
    positions = trie.positions[items].long()
    is_known = (values > 0) & (positions >= 0)
    rows, positions, values = rows[is_known], positions[is_known], values[is_known]
    is_live = constraints.allows_positions(rows, positions)
    rows, positions, values = rows[is_live], positions[is_live], values[is_live]
    order = (rows * trie.num_items + positions).argsort()
    return _SparseLargest(rows[order], positions[order], values[order], trie, num_requests=constraints.num_requests)
