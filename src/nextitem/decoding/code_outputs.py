"""Code outputs: one linear layer for each level, from the hidden state at a prefix to the logits of the next codes.

It is what generators of semantic IDs commonly have, and an alternative to a vector for each node (node_vectors.py): its
size does not depend on the number of items, and an item without events has all that it needs. In training all codes of
a level compete, legal or not.

Shapes: R rows, D width, C children of a row.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from nextitem.decoding.item_paths import ItemPaths
from nextitem.ops.trie_softmax import ChildRanges


class CodeOutputs(nn.Module):
    """Input vectors of the codes, and linear layers to their logits; the methods are those of NodeVectors.

    Args:
        sizes: number of codes of each level.
        width: width of the vectors (D).

    """

    def __init__(self, sizes: tuple[int, ...], *, width: int) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(nn.Embedding(size, width) for size in sizes[:-1])
        self.outputs = nn.ModuleList(nn.Linear(width, size, bias=False) for size in sizes)

    def forward(self, nodes: Tensor, *, level: int, tree: ItemPaths) -> Tensor:
        """Return the input vectors of nodes of depth `level + 1`, [..., D]; -1 is read as some node."""
        safe = nodes.clamp(min=tree.trie.level_starts[level + 1])
        return self.inputs[level](tree.trie.codes[safe].long())  # type: ignore[no-any-return]

    def log_probs(
        self, hidden: Tensor, targets: Tensor, parents: Tensor, *, level: int, tree: ItemPaths, rows: Tensor, **_: Any
    ) -> Tensor:
        """Return the log-probability of the code of each target among all codes of the level, [T].

        Arguments as in NodeVectors.log_probs; `parents` are not needed, and neither are vectors of items.
        """
        log_probs: Tensor = cast(nn.Linear, self.outputs[level])(hidden).log_softmax(1)
        size = log_probs.shape[1]
        return log_probs.flatten().index_select(0, rows * size + tree.trie.codes[targets].long())

    def logits(self, hidden: Tensor, children: ChildRanges, *, level: int, tree: ItemPaths, **_: Any) -> Tensor:
        """Return the logits of the children of each row, [R, C]; -inf for padding. Arguments as in NodeVectors."""
        by_code: Tensor = self.outputs[level](hidden)
        numbers = torch.arange(children.max_count, device=hidden.device)
        nodes = children.starts[:, None] + torch.minimum(numbers, children.counts[:, None] - 1).clamp(min=0)
        codes = tree.trie.codes[nodes].long().clamp(min=0)
        return by_code.gather(1, codes).masked_fill(numbers >= children.counts[:, None], -torch.inf)
