"""Stream of training batches over all epochs, which can start at any batch of any epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic

import torch

from nextitem.core.roles import BatchT, Examples
from nextitem.distributed import processes


@dataclass(frozen=True)
class ScheduledBatch(Generic[BatchT]):
    """A batch with its position in training, from which every random number of its step follows.

    Attributes:
        epoch: epoch, from 0.
        index: index of the batch within its epoch, from 0.
        is_last: whether it is the last batch of its epoch.
        batch: this process's part of the batch; the whole batch if there is one process.
        weight: factor of the part's loss, such that the mean over processes is the loss of the whole batch.

    """

    epoch: int
    index: int
    is_last: bool
    batch: BatchT
    weight: float = 1.0

    def to(self, device: torch.device | str) -> ScheduledBatch[BatchT]:
        """Return the same batch on another device."""
        return ScheduledBatch(self.epoch, self.index, self.is_last, self.batch.to(device), self.weight)


class BatchStream(Generic[BatchT]):
    """Batches of epochs `epoch` .. `epochs` - 1, starting at batch `start` of the first of them.

    Examples are pure functions of (seed, epoch, index), so `epoch` and `start` are the whole cursor of a run.
    """

    def __init__(
        self, examples: Examples[BatchT], *, batch_size: int, seed: int, epochs: int, epoch: int = 0, start: int = 0
    ) -> None:
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self.epochs = epochs
        self.epoch = epoch
        self.start = start
        self.per_epoch = examples.num_batches(batch_size)

    def __len__(self) -> int:
        return max(0, (self.epochs - self.epoch) * self.per_epoch - self.start)

    def __iter__(self) -> Iterator[ScheduledBatch[BatchT]]:
        start = self.start
        for epoch in range(self.epoch, self.epochs):
            batches = self.examples.batches(self.batch_size, epoch=epoch, seed=self.seed, start=start)
            for index, batch in enumerate(batches, start=start):
                yield ScheduledBatch(epoch, index, index + 1 == self.per_epoch, *_local_part(batch))
            start = 0


def _local_part(batch: BatchT) -> tuple[BatchT, float]:
    """Return this process's part of the batch and its weight; all build the same batch, so nothing is communicated.

    If the part is empty, the weight is 0, and that of the first process is returned: look-ups among processes need it.
    """
    if processes.world_size() == 1:
        return batch, 1.0
    part = batch.share(processes.rank(), processes.world_size())
    if not part.loss_count:
        return batch.share(0, processes.world_size()), 0.0
    return part, part.loss_count * processes.world_size() / batch.loss_count
