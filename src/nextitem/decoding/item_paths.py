"""The trie of a model's identifiers and the path of every item in it, which can be replaced while the model is trained.

The codes are part of the weights. So checkpoints, the best weights and bundles contain the identifiers to which their
node vectors belong.

Shapes: N items, M levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from operator import mul

import torch
from torch import Tensor, nn

from nextitem.core.identifiers import IdentifierTable
from nextitem.decoding.trie import PrefixTrie


class ItemPaths(nn.Module):
    """The identifiers of all items, their trie, and the nodes on the path of each item.

    Attributes:
        table: the current identifiers.
        trie: their trie.
        codes: [N + 1, M] int32, those of the table.
        nodes: [N + 1, M + 1] int64, the nodes from the root to the item's leaf; those of padding have no meaning.
        item_of_leaf: [nodes of the trie] int64, the item of a leaf; else 0. Of several items that share it, the first
            one that is seen, or the first.
        seen_trie: the trie without items that are not seen. Its nodes are the same, but some may have no item.
        has_empty_nodes: whether an inner node has no seen item.
        own_rows: [nodes of the trie] int64, the item whose own vector a leaf has; 0 if none of its items is seen.
        seen_leaves: leaves with a seen item, in order; None: all.
        num_seen: [leaves + 1] int64, number of them before each leaf; None with `seen_leaves`.
        num_inner: number of inner nodes, sentinels included, for which a model needs vectors: those of the trie, or
            those that any trie of these items and codebook sizes can have at most, if the codes can be replaced.

    Args:
        table: the first identifiers.
        replaced_below: number of first codes that stay if codes are replaced; None: they never are.

    Raises:
        ValueError: the codes cannot be replaced by clusters.

    """

    codes: Tensor
    nodes: Tensor
    item_of_leaf: Tensor
    own_rows: Tensor
    seen_leaves: Tensor | None
    num_seen: Tensor | None
    unseen: Tensor | None
    trie: PrefixTrie
    seen_trie: PrefixTrie
    has_empty_nodes: bool

    def __init__(self, table: IdentifierTable, *, replaced_below: int | None = None) -> None:
        super().__init__()
        self.table = table
        self.register_buffer("codes", table.codes.clone())
        self.register_buffer("unseen", None, persistent=False)
        self._build()
        self.num_inner = self.trie.level_starts[-2]
        if replaced_below is not None:
            self._check_replaceable(replaced_below)
            num_codes = accumulate(table.codebook_sizes[:-1], initial=1, func=mul)
            self.num_inner = sum(min(count, table.num_items) + 1 for count in num_codes)
        self.register_load_state_dict_post_hook(lambda paths, _: paths._build())  # type: ignore[no-untyped-call]

    def mask_without_seen(self, logits: Tensor, nodes: Tensor, *, is_leaf: bool) -> Tensor:
        """Return the logits of nodes, -inf for those without a seen item; any value for node -1."""
        if self.unseen is None or not (is_leaf or self.has_empty_nodes):
            return logits
        starts, safe = self.seen_trie.item_starts, nodes.clamp(min=0)
        return logits.masked_fill(starts[safe] == starts[safe + 1], -torch.inf)

    @torch.no_grad()
    def replace_codes(
        self,
        codes: Tensor,
        *,
        by_node: Sequence[nn.Embedding],
        by_code: Sequence[nn.Embedding],
        weights: Tensor,
    ) -> list[nn.Parameter]:
        """Replace the identifiers by other codes of the same items, and carry over the vectors of nodes and codes.

        A vector becomes the weighted mean of those that the items below the node had at its depth. So a node whose
        items stay together keeps its vector, and another one starts between the nodes that its items come from.

        Args:
            codes: [N, M], below the codebook sizes of the table.
            by_node: tables with a row for each inner node.
            by_code: tables of the levels with a row for each code, or none.
            weights: weight of each item, such as its number of training events, [N + 1]; less than 1 counts as 1.

        Returns:
            The changed parameters.

        """
        former_nodes, former_codes = self.nodes, self.codes
        self.codes = former_codes.clone()
        self.codes[1:] = codes.to(self.codes)
        self._build()
        item_weights = weights[1:].clamp(min=1)
        inner = slice(1, self.trie.num_levels)  # neither the root, which has no vector, nor the leaves
        num_inner = self.trie.num_levels - 1
        for table in by_node:
            former, current = (nodes[1:, inner].flatten() for nodes in (former_nodes, self.nodes))
            _average(table, former, current, item_weights.repeat_interleave(num_inner))
        for level, table in enumerate(by_code):
            _average(table, former_codes[1:, level].long(), self.codes[1:, level].long(), item_weights)
        return [*nn.ModuleList([*by_node, *by_code]).parameters()]

    def _check_replaceable(self, num_kept: int) -> None:
        """Raise ValueError if the items cannot be clustered below their first `num_kept` codes."""
        sizes = self.table.codebook_sizes
        if num_kept > len(sizes) - 2:
            raise ValueError(
                f"identifiers of {len(sizes)} levels have no level of clusters below the first {num_kept}; the last "
                "one only numbers items"
            )
        prefixes = torch.nn.functional.pad(self.codes[1:, :num_kept], (1, 0))
        largest = int(prefixes.unique(dim=0, return_counts=True)[1].max())
        if math.prod(sizes[num_kept:]) < largest:
            raise ValueError(
                f"codebook sizes {sizes[num_kept:]} have fewer codes than the {largest:,} items that share the codes "
                "before them, so these cannot get different ones; use a tokenizer with more codes"
            )

    def _build(self) -> None:
        """Build the trie of the current codes, and the paths."""
        device = self.codes.device
        codes = self.codes.cpu().clone()
        if not torch.equal(codes, self.table.codes):
            self.table = replace(self.table, codes=codes, report=None)  # the report describes the former codes
        trie = PrefixTrie.from_table(self.table)
        positions = trie.positions.long().clamp(min=0)
        nodes = torch.stack([trie.ancestors(positions, depth=depth) for depth in range(trie.num_levels + 1)], dim=1)
        self.trie = trie.to(device)
        self.register_buffer("nodes", nodes.to(device), persistent=False)
        self.set_unseen(self.unseen)

    def vectors_of(
        self, ids: Tensor, *, items: Tensor | None, nodes: nn.Embedding | None, unseen: Tensor | None
    ) -> list[Tensor]:
        """Return the vectors as which items are read, [..., D] each: their own, and those of the nodes above them.

        Args:
            ids: numbers of the items, [...]; 0 is padding.
            items: the items' own vectors, [N + 1, D]; None: they are not read.
            nodes: vectors of the inner nodes; None: they are not read.
            unseen: items whose own vectors have no meaning, bool [N + 1]; None: none.

        """
        parts = [] if items is None else [nn.functional.embedding(ids, items, padding_idx=0)]
        if unseen is not None:
            parts = [part.masked_fill(unseen[ids][..., None], 0) for part in parts]
        if nodes is not None:
            parts += [nodes(self.nodes[ids, depth]) for depth in range(1, self.trie.num_levels)]
        return parts

    def set_unseen(self, unseen: Tensor | None) -> None:
        """Tell which items are not seen: those without a training event, bool [N + 1]; None: all are.

        Their leaves have no vector of their own. As they never are a target, they do not compete in training: that
        would lower what their content shares with other items.
        """
        self.register_buffer("unseen", unseen, persistent=False)
        trie = self.trie
        self.seen_trie = trie if unseen is None else trie.without(unseen)
        starts = self.seen_trie.item_starts
        self.has_empty_nodes = any(
            bool((starts[start : end - 1] == starts[start + 1 : end]).any())
            for start, end in pairwise(trie.level_starts[:-1])
        )
        first, size, items = trie.level_starts[-2], trie.num_items, trie.items.long()
        num_items = trie.item_starts[first:].long().diff()
        leaves = torch.arange(len(num_items), device=items.device).repeat_interleave(num_items)
        ranks = torch.arange(size, device=items.device)
        if unseen is not None:
            ranks += size * unseen[items]
        ranks = torch.full_like(num_items, 2 * size).scatter_reduce_(0, leaves, ranks, "amin")
        item_of_leaf = items.new_zeros(trie.level_starts[-1])
        item_of_leaf[first:-1] = items[ranks % size]
        own_rows = item_of_leaf.clone()
        own_rows[first:-1].masked_fill_(ranks >= size, 0)
        seen_leaves = None if unseen is None else own_rows.nonzero()[:, 0]
        num_seen = None if unseen is None else torch.nn.functional.pad((ranks < size).cumsum(0), (1, 0))
        buffers = {"item_of_leaf": item_of_leaf, "own_rows": own_rows, "seen_leaves": seen_leaves, "num_seen": num_seen}
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)


def _average(table: nn.Embedding, former: Tensor, current: Tensor, weights: Tensor) -> None:
    """Set row r to the weighted mean of the rows `former[i]` of all i with `current[i] == r`; other rows stay."""
    factors = weights.to(table.weight)[:, None]
    sums = torch.zeros_like(table.weight).index_add_(0, current, table.weight[former] * factors)
    totals = torch.zeros_like(table.weight[:, :1]).index_add_(0, current, factors)
    table.weight.copy_(torch.where(totals > 0, sums / totals.clamp(min=1), table.weight))
