"""Processes that work together, as torchrun starts them: who this one is, and how they agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

from nextitem.core.errors import UserError


def count() -> int:
    """How many processes work together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if count() > 1 else 0


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the processes that torchrun has started, for as long as the block runs."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or distributed.is_initialized():
        yield
        return
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def broadcast_int(value: int) -> int:
    """What the first process says."""
    if count() == 1:
        return value
    said = torch.tensor(value)
    distributed.broadcast(said, 0)
    return int(said)


def run_on_rank_zero(work: Callable[[], object]) -> None:
    """Does `work` in the first process while the others wait; where it fails, all of them end."""
    if rank() == 0:
        try:
            work()
        except Exception:
            broadcast_int(1)  # whatever it was, the others must not wait for ever
            raise
    if broadcast_int(0):
        raise UserError("the first process could not go on")


def gather(part: Tensor) -> list[Tensor]:
    """The part of every process, in order of their numbers; parts may differ in their first dimension (CPU tensors)."""
    if count() == 1:
        return [part]
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(count())]
    distributed.all_gather(sizes, torch.tensor([len(part)]))
    longest = int(max(sizes))
    padded = part.new_zeros(longest, *part.shape[1:])
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    return [other[: int(size)] for other, size in zip(parts, sizes, strict=True)]
