"""Processes of a distributed run, as torchrun starts them: rank, number of processes, and communication."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

from nextitem.core.errors import UserError


def world_size() -> int:
    """Return the number of processes (the world size); 1 if the run is not distributed."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process, from 0."""
    return distributed.get_rank() if world_size() > 1 else 0


@contextmanager
def process_group() -> Iterator[None]:
    """Connect the processes that torchrun has started, until the `with` block ends.

    It does nothing with fewer than two processes, or if they are connected already.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or distributed.is_initialized():
        yield
        return
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def broadcast_int(value: int) -> int:
    """Return the `value` of rank 0 in all processes."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value)
    distributed.broadcast(tensor, 0)
    return int(tensor)


def run_on_rank_zero(work: Callable[[], object]) -> None:
    """Run `work` on rank 0 while the others wait. If it fails, every process raises.

    Rank 0 raises the exception of `work`, the others UserError.
    """
    if rank() == 0:
        try:
            work()
        except Exception:
            broadcast_int(1)  # for any exception, as the other processes must not wait forever
            raise
    if broadcast_int(0):
        raise UserError("the process of rank 0 failed; see its error message")


def gather(part: Tensor) -> list[Tensor]:
    """Return the `part` of every process, in order of rank; parts may differ in their first dimension (CPU tensors)."""
    if world_size() == 1:
        return [part]
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    distributed.all_gather(sizes, torch.tensor([len(part)]))
    max_size = int(max(sizes))
    padded = part.new_zeros(max_size, *part.shape[1:])
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    return [part[: int(size)] for part, size in zip(parts, sizes, strict=True)]


def gather_batch(part: Tensor) -> Tensor:
    """Return the rows of a whole batch, of which each process has every n-th row from that of its rank on (CPU)."""
    parts = gather(part)
    whole = part.new_empty(sum(len(each) for each in parts), *part.shape[1:])
    for number, each in enumerate(parts):
        whole[number :: len(parts)] = each
    return whole


def exchange(values: Tensor, counts: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Send rows to every process, and return the rows that every process sends to this one; all processes call it.

    Args:
        values: rows in the order of the processes that get them.
        counts: number of rows for each process.

    Returns:
        The rows received, in the order of the processes that sent them, and their number by process.

    """
    if world_size() == 1:
        return values, list(counts)
    received_counts = torch.zeros(world_size(), dtype=torch.int64)
    distributed.all_to_all_single(received_counts, torch.tensor(counts))
    sizes: list[int] = received_counts.tolist()
    received = values.new_empty(sum(sizes), *values.shape[1:])
    distributed.all_to_all_single(received, values.contiguous(), sizes, list(counts))
    return received, sizes
