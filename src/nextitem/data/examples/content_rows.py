"""Rows of the content matrix, shuffled: what auto-encoding tokenizers learn from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ContentBatch:
    """B content vectors, [B, D] float32."""

    content: Tensor

    def to(self, device: torch.device | str) -> ContentBatch:
        """The same on another device."""
        return ContentBatch(self.content.to(device))

    def share(self, rank: int, count: int) -> ContentBatch:
        """Every `count`-th row from `rank` on."""
        return ContentBatch(self.content[rank::count])

    @property
    def loss_count(self) -> int:
        """Rows."""
        return len(self.content)


class ContentRows:
    """Every row of `content [N, D]` once an epoch, in an order that follows from seed and epoch."""

    def __init__(self, content: Tensor) -> None:
        self.content = content

    def num_batches(self, batch_size: int) -> int:
        """Batches in one epoch; the last one may be smaller."""
        return -(-len(self.content) // batch_size)

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[ContentBatch]:
        """Batches `start`, `start + 1`, ... of the given epoch; the same ones for the same arguments."""
        order = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(len(self.content)))
        for index in range(start, self.num_batches(batch_size)):
            yield ContentBatch(self.content[order[index * batch_size : (index + 1) * batch_size]])
