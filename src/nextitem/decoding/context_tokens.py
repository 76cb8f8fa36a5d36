"""Context tokens: what a generator reads of a request, one vector for each event and one for the user.

An event is the sum of the vectors of its item, of the nodes above the item in the trie, and of its position counted
from the last event.

Shapes: B requests, L tokens, D width, N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core.batch import SequenceBatch
from nextitem.decoding.item_paths import ItemPaths

Reads = Literal["items", "nodes"]


class ContextTokens(nn.Module):
    """Tables of items, nodes, positions and users, and their sums.

    Args:
        tree: the trie with the paths of the items.
        width: width of the vectors (D).
        length: largest number of events that are read.
        reads: vectors that an event is the sum of.
        user: module that returns the user tokens [B, D] of B requests from their context; None: no such token.

    """

    def __init__(
        self, tree: ItemPaths, *, width: int, length: int, reads: Sequence[Reads], user: nn.Module | None
    ) -> None:
        super().__init__()
        self.items = nn.Embedding(len(tree.codes), width, padding_idx=0)
        self.reads_items = "items" in reads
        self.nodes = nn.Embedding(tree.num_inner, width) if "nodes" in reads else None
        self.positions = nn.Embedding(length, width)  # row 0: the last event
        self.user = user

    def forward(self, batch: SequenceBatch, tree: ItemPaths, unseen: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the tokens [B, L, D], and which are real, bool [B, 1, 1, L]; None: all.

        Args:
            batch: requests, with no more events than are read.
            tree: the trie with the paths of the items.
            unseen: items whose own vectors have no meaning, bool [N + 1]; None: none.

        """
        items_BL = batch.items.to_padded()
        ages = batch.items.lengths[:, None] - 1 - torch.arange(items_BL.shape[1], device=items_BL.device)
        own = self.items.weight if self.reads_items else None
        parts = tree.vectors_of(items_BL, items=own, nodes=self.nodes, unseen=unseen)
        parts.insert(0, self.positions(ages.clamp(min=0)))
        tokens_BLD, is_real = torch.stack(parts).sum(0), items_BL > 0
        if self.user is not None:
            user_B1D = self.user(batch.context, batch.num_requests)[:, None]
            tokens_BLD, is_real = torch.cat([user_B1D, tokens_BLD], 1), F.pad(is_real, (1, 0), value=True)
        return tokens_BLD, None if bool(is_real.all()) else is_real[:, None, None]
