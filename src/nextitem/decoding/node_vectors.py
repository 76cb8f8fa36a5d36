"""Vectors of the nodes of a trie, and the probabilities of the children of a node.

A node's logit is the inner product of a hidden state with the node's vector; a softmax over its siblings makes
probabilities. A vector is the sum of the parts that are switched on:

    own vector      of this node alone; that of a leaf is the vector of its item
    code vector     shared by all nodes to which the same code of the same level leads
    content         a projection of the item's content (leaves only)

With code vectors alone the model factorises as TIGER does: some hundred vectors tell all items apart. With own vectors
it is a hierarchical softmax.

Shapes: R rows, D width, C children of a row, N items, M levels.
"""

from __future__ import annotations

from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core.jagged import offsets_of, ranges
from nextitem.decoding.item_paths import ItemPaths
from nextitem.decoding.trie import PrefixTrie
from nextitem.ops.trie_softmax import ChildRanges, child_logits, trie_softmax

Parts = Literal["nodes", "codes", "both"]
Targets = tuple[Tensor, Tensor, Tensor]  # row of a hidden state, item, and weight of each target, [T] each


class Descent(Protocol):
    """Network from the state at a node to that at one of its children (nn/depth_network.py)."""

    def start(self, hidden: Tensor) -> Tensor:
        """Return the states at the root, [R, t, D], from hidden states [R, D]; the last of t states is current."""

    def __call__(
        self, states: Tensor, vectors: Tensor, *, level: int, rows: Tensor | None = None, nodes: Tensor | None = None
    ) -> Tensor:
        """Return the states at nodes of depth `level`, from their parents' states and their vectors."""


class NodeVectors(nn.Module):
    """Vectors of all nodes below the root.

    Args:
        tree: the trie with the paths of the items; the caller keeps it on the device of this module.
        parts: own vectors ("nodes"), code vectors ("codes"), or their sum ("both").
        content: [N + 1, content width], read at the leaves; None: no content.
        width: width of the vectors (D).

    """

    def __init__(self, tree: ItemPaths, *, parts: Parts, content: Tensor | None, width: int) -> None:
        super().__init__()
        sizes = tree.trie.codebook_sizes
        self.inner = nn.Embedding(tree.num_inner, width) if parts != "codes" else None
        self.codes = nn.ModuleList(nn.Embedding(size, width) for size in sizes) if parts != "nodes" else None
        self.content = None if content is None else nn.Linear(content.shape[1], width, bias=False)

    @property
    def code_tables(self) -> list[nn.Embedding]:
        """The tables of code vectors, one for each level; empty without code vectors."""
        return [cast(nn.Embedding, table) for table in self.codes or ()]

    def forward(
        self,
        nodes: Tensor,
        *,
        level: int,
        tree: ItemPaths,
        items: Tensor | None = None,
        content: Tensor | None = None,
    ) -> Tensor:
        """Return the vectors of nodes of depth `level + 1`, [..., D]; -1 is read as some node.

        `items` and `content` are needed at the leaves, as in `log_probs`.
        """
        safe = nodes.clamp(min=tree.trie.level_starts[level + 1])
        parts = []
        is_leaf = level + 1 == tree.trie.num_levels
        if self.inner is not None:
            parts.append(self.inner(safe) if items is None else F.embedding(tree.own_rows[safe], items))
        if self.codes is not None:
            parts.append(self.codes[level](tree.trie.codes[safe].long()))
        if self.content is not None and is_leaf:
            assert content is not None
            parts.append(self.content(content[tree.item_of_leaf[safe]]))
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def log_probs(
        self,
        hidden: Tensor,
        targets: Tensor,
        parents: Tensor,
        *,
        level: int,
        tree: ItemPaths,
        items: Tensor,
        content: Tensor | None,
        rows: Tensor,
    ) -> Tensor:
        """Return the log-probability of each target among the children of its parent, [T].

        Args:
            hidden: hidden states [R, D].
            targets: [T] int64, nodes of depth `level + 1`, with a training event.
            parents: [R] int64, the node of each hidden state.
            level: depth of the parents.
            tree: the trie with the paths of the items.
            items: item vectors, [N + 1, D].
            content: content vectors [N + 1, content width], if the leaves read them.
            rows: [T] int64, the hidden state of each target; its parent is that of the target.

        """
        is_leaf = level + 1 == tree.trie.num_levels
        if level == 0 and not is_leaf:
            first, end = tree.trie.level_starts[1], tree.trie.level_starts[2] - 1
            table = self(torch.arange(first, end, device=hidden.device), level=0, tree=tree)
            log_probs: Tensor = (hidden @ table.T).log_softmax(1)
            return log_probs.flatten().index_select(0, rows * (end - first) + targets - first)
        children, columns = child_ranges(tree.trie, parents), None
        if is_leaf and tree.num_seen is not None and tree.seen_leaves is not None:
            first, columns = tree.trie.level_starts[level + 1], tree.seen_leaves
            starts, ends = (
                tree.num_seen[edge - first] for edge in (children.starts, children.starts + children.counts)
            )
            children, targets = ChildRanges(starts, ends - starts), tree.num_seen[targets - first]
        if self.inner is not None and self.codes is None and (self.content is None or not is_leaf):
            of_leaves = tree.item_of_leaf if columns is None else tree.item_of_leaf[columns]
            table, vector_rows = (items, of_leaves) if is_leaf else (self.inner.weight, None)
            return trie_softmax(hidden, table, children, targets, rows=rows, vector_rows=vector_rows)
        # A table of the children of all parents, each parent once.
        starts, parent = torch.unique(children.starts, return_inverse=True)
        counts = torch.zeros_like(starts).index_copy_(0, parent, children.counts)
        nodes = ranges(starts, counts)
        table = self(
            nodes if columns is None else columns[nodes],
            level=level,
            tree=tree,
            items=items if is_leaf else None,
            content=content,
        )
        shift = (offsets_of(counts)[:-1] - starts)[parent]
        children, targets = ChildRanges(children.starts + shift, children.counts), targets + shift[rows]
        return trie_softmax(hidden, table, children, targets, rows=rows)

    def logits(
        self,
        hidden: Tensor,
        children: ChildRanges,
        *,
        level: int,
        tree: ItemPaths,
        items: Tensor,
        content: Tensor | None,
    ) -> Tensor:
        """Return the logits of the children of each row, [R, C]; -inf for padding. Arguments as in `log_probs`."""
        is_leaf = level + 1 == tree.trie.num_levels
        parts = []
        if self.inner is not None:
            table, rows = (items, tree.own_rows) if is_leaf else (self.inner.weight, None)
            parts.append(child_logits(hidden, table, children, vector_rows=rows))
        if self.codes is not None:
            by_code = hidden @ cast(nn.Embedding, self.codes[level]).weight.T
            numbers = torch.arange(children.max_count, device=hidden.device)
            nodes = children.starts[:, None] + torch.minimum(numbers, children.counts[:, None] - 1).clamp(min=0)
            is_child = numbers < children.counts[:, None]
            codes = tree.trie.codes[nodes].long().clamp(min=0)
            parts.append(by_code.gather(1, codes).masked_fill(~is_child, -torch.inf))
        if self.content is not None and is_leaf:
            assert content is not None
            queries = hidden @ self.content.weight
            parts.append(child_logits(queries, content, children, vector_rows=tree.item_of_leaf))
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


def path_losses(
    hidden: Tensor,
    targets: Targets,
    *,
    deeper: Descent,
    nodes: NodeVectors,
    tree: ItemPaths,
    items: Tensor,
    content: Tensor | None,
) -> list[Tensor]:
    """Return the weighted cross-entropy of the targets' nodes among their siblings, for each level, M scalars.

    Targets with the same hidden state and the same prefix share the softmax over what may follow it.

    Args:
        hidden: hidden states at the root, [R, D].
        targets: the hidden state of each target, its item, which has a training event, and its weight, [T] each.
        deeper: network from the state at a node to that at a child.
        nodes: vectors of the nodes.
        tree: the trie with the paths of the items.
        items: item vectors, [N + 1, D].
        content: content vectors [N + 1, content width], if the leaves read them.

    """
    rows, target_items, weights = targets
    paths, states, losses = tree.nodes[target_items], deeper.start(hidden), []
    parents = paths.new_zeros(len(states))  # of the states: the root
    for level in range(tree.trie.num_levels):
        if level:
            keys, rows = torch.unique(rows * tree.trie.num_nodes + paths[:, level], return_inverse=True)
            former, parents = keys // tree.trie.num_nodes, keys % tree.trie.num_nodes
            above, of_row = torch.unique(parents, return_inverse=True)
            states = deeper(states, nodes(above, level=level - 1, tree=tree), level=level, rows=former, nodes=of_row)
        log_probs = nodes.log_probs(
            states[:, -1], paths[:, level + 1], parents, level=level, tree=tree, items=items, content=content, rows=rows
        )
        losses.append(-(weights * log_probs).sum())
    return losses


def child_ranges(trie: PrefixTrie, parents: Tensor) -> ChildRanges:
    """Return the children of inner nodes `parents [R]`; node -1 has none."""
    safe = parents.clamp(min=0)
    starts = trie.first_child[safe].long()
    counts = trie.first_child[safe + 1].long() - starts
    return ChildRanges(starts, counts.masked_fill(parents < 0, 0))
