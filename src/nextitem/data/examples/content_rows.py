"""Shuffled rows of the content matrix: the training examples of auto-encoding tokenizers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ContentBatch:
    """Content vectors of one batch, [B, D] float32."""

    content: Tensor

    def to(self, device: torch.device | str) -> ContentBatch:
        """Return the same batch on another device."""
        return ContentBatch(self.content.to(device))

    def share(self, rank: int, count: int) -> ContentBatch:
        """Return this process's part of the batch: every `count`-th row from row `rank` on."""
        return ContentBatch(self.content[rank::count])

    @property
    def loss_count(self) -> int:
        """Return the number of rows, over which the loss is averaged."""
        return len(self.content)


class ContentRows:
    """Stream of all rows of `content [N, D]`, once an epoch, in an order that depends on seed and epoch alone."""

    def __init__(self, content: Tensor) -> None:
        self.content = content

    def num_batches(self, batch_size: int) -> int:
        """Return the number of batches in one epoch; the last one may be smaller."""
        return -(-len(self.content) // batch_size)

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[ContentBatch]:
        """Yield the batches `start`, `start + 1`, ... of an epoch; the same ones for the same arguments."""
        order = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(len(self.content)))
        for index in range(start, self.num_batches(batch_size)):
            yield ContentBatch(self.content[order[index * batch_size : (index + 1) * batch_size]])
