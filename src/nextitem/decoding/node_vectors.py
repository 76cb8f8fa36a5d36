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

from typing import Literal, cast

import torch
from torch import Tensor, nn

from nextitem.decoding.item_paths import ItemPaths
from nextitem.decoding.trie import PrefixTrie
from nextitem.ops.trie_softmax import ChildRanges, child_logits, trie_softmax

Parts = Literal["nodes", "codes", "both"]


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

    def forward(self, nodes: Tensor, *, level: int, tree: ItemPaths) -> Tensor:
        """Return the vectors of inner nodes of depth `level + 1`, [..., D]; -1 is read as some node."""
        safe = nodes.clamp(min=tree.trie.level_starts[level + 1])
        parts = []
        if self.inner is not None:
            parts.append(self.inner(safe))
        if self.codes is not None:
            parts.append(self.codes[level](tree.trie.codes[safe].long()))
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
    ) -> Tensor:
        """Return the log-probability of the target among the children of its parent, [R].

        Args:
            hidden: hidden states [R, D].
            targets: [R] int64, nodes of depth `level + 1`.
            parents: [R] int64, their parents.
            level: depth of the parents.
            tree: the trie with the paths of the items.
            items: item vectors, [N + 1, D].
            content: content vectors [N + 1, content width], if the leaves read them.

        """
        children = child_ranges(tree.trie, parents)
        is_leaf = level + 1 == tree.trie.num_levels
        if self.inner is not None and self.codes is None and (self.content is None or not is_leaf):
            table, rows = (items, tree.item_of_leaf) if is_leaf else (self.inner.weight, None)
            return trie_softmax(hidden, table, children, targets, vector_rows=rows)
        logits = self.logits(hidden, children, level=level, tree=tree, items=items, content=content)
        column = (targets - children.starts)[:, None]
        return logits.gather(1, column)[:, 0] - logits.logsumexp(1)

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
            table, rows = (items, tree.item_of_leaf) if is_leaf else (self.inner.weight, None)
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


def child_ranges(trie: PrefixTrie, parents: Tensor) -> ChildRanges:
    """Return the children of inner nodes `parents [R]`; node -1 has none."""
    safe = parents.clamp(min=0)
    starts = trie.first_child[safe].long()
    counts = trie.first_child[safe + 1].long() - starts
    return ChildRanges(starts, counts.masked_fill(parents < 0, 0))
