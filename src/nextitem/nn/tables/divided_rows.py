"""DividedRows: the rows of a table divided among processes, each of which stores those of its slices of ids.

A process that looks up ids sends each distinct id to its owner, which answers with the vector (all-to-all). The vectors
are leaves of the graph of that process; after the backward pass their gradients travel back by the same way, and the
owner adds them up. So the communication is in two places that all processes reach, and none happens within the backward
pass, whose order may differ between processes.

Shapes: n ids, D width, R rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nextitem.distributed import processes
from nextitem.nn.tables.id_hash import NUM_SLICES, slices_of


@dataclass(frozen=True)
class _Read:
    """One look-up: the vectors that this process has read, and the rows that others have read from it.

    Attributes:
        vectors: vectors of the distinct ids [n, D], a leaf.
        order: places of these ids in the order of their owners.
        counts: number of ids by owner.
        rows: rows of this process that were sent to others.
        sent_counts: number of these rows by process.

    """

    vectors: Tensor
    order: Tensor
    counts: list[int]
    rows: Tensor
    sent_counts: list[int]


class DividedRows:
    """Look-ups among processes, and their gradients."""

    def __init__(self) -> None:
        self._reads: list[_Read] = []

    def read(self, ids: Tensor, weight: Tensor, rows_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the vectors of ids of any shape, [..., D]; all processes call it equally often.

        Args:
            ids: ids of any owner.
            weight: rows of this process [R, D].
            rows_of: function that returns the rows of ids that this process owns.

        """
        distinct, places = torch.unique(ids, return_inverse=True)
        owners = owners_of(distinct)
        order, counts = owners.argsort(stable=True), torch.bincount(owners, minlength=processes.world_size()).tolist()
        requested_ids, sent_counts = processes.exchange(distinct[order], counts)
        rows = rows_of(requested_ids)
        answers, _ = processes.exchange(weight.detach()[rows], sent_counts)
        vectors = torch.empty_like(answers)
        vectors[order] = answers
        if torch.is_grad_enabled():
            vectors.requires_grad_()
            self._reads.append(_Read(vectors, order, counts, rows, sent_counts))
        return F.embedding(places, vectors)

    def collect_gradient(self, weight: Tensor) -> Tensor:
        """Return the gradient of this process's rows, sparse [R, D]: the mean over processes; all processes call it."""
        rows, values = [torch.zeros(0, dtype=torch.int64, device=weight.device)], [weight.new_zeros(0, weight.shape[1])]
        for read in self._reads:
            gradient = torch.zeros_like(read.vectors) if read.vectors.grad is None else read.vectors.grad
            received, _ = processes.exchange(gradient[read.order], read.counts)
            rows.append(read.rows)
            values.append(received / processes.world_size())
        self._reads = []
        all_rows, all_values = torch.cat(rows), torch.cat(values)
        is_trained = all_rows > 0  # row 0 is padding
        return torch.sparse_coo_tensor(all_rows[is_trained][None], all_values[is_trained], weight.shape)


def owners_of(ids: Tensor) -> Tensor:
    """Return the process that owns each id."""
    return slices_of(ids) % processes.world_size()


class RowGathering:
    """Order in which the rows of all processes form the whole table: shared rows first, then the ids in their order.

    Args:
        ids: ids of the rows of this process [R]; 0 for other rows.
        num_shared: number of rows before those of ids: padding, and shared rows of all slices in turn.

    """

    def __init__(self, ids: Tensor, *, num_shared: int) -> None:
        self.num_shared = num_shared
        self.owners = owners_of_shared(num_shared)
        all_ids = torch.cat(processes.gather(ids[num_shared:].cpu()))
        used = (all_ids != 0).nonzero()[:, 0]
        self.order = used[all_ids[used].argsort()]

    def gather(self, own: Tensor) -> Tensor:
        """Return the whole of a tensor with an entry for each row of this process; all processes call it."""
        parts = processes.gather(own.cpu())
        shared = torch.stack([part[: self.num_shared] for part in parts])[self.owners, torch.arange(self.num_shared)]
        return torch.cat([shared, torch.cat([part[self.num_shared :] for part in parts])[self.order]]).to(own.device)


def owners_of_shared(num_shared: int) -> Tensor:
    """Return the owner of each row before those of ids: shared row j, from 1 on, belongs to slice (j - 1) % slices."""
    return (torch.arange(num_shared) - 1).clamp(min=0) % NUM_SLICES % processes.world_size()
