"""Growing tables in training: the optimizer's state follows their rows, and processes divide and gather them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nextitem.distributed import processes
from nextitem.nn.tables.growing import GrowingTable
from nextitem.training.optimizers import row_states


def growing_tables(model: nn.Module) -> list[GrowingTable]:
    """Return the growing tables of a model."""
    return [part for part in model.modules() if isinstance(part, GrowingTable)]


def change_rows(tables: Sequence[GrowingTable], optimizer: torch.optim.Optimizer) -> None:
    """Admit and evict ids after an optimizer step; the moments of rows with another id become 0."""
    for table in tables:
        rows = table.after_step()
        for state, name in row_states(optimizer, table.weight):
            values = state[name]
            missing = len(table.weight) - len(values)
            if missing:
                values = state[name] = torch.cat([values, values.new_zeros(missing, *values.shape[1:])])
            values[rows] = 0


def divide_tables(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Let each of several processes keep only its own rows, in the tables whose settings say so."""
    if processes.world_size() == 1:
        return
    for table in growing_tables(model):
        if table.config.is_divided and not table.is_divided:
            _replace_states(optimizers, table, table.divide_rows())


def gather_tables(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Let every process store the rows of all, with their moments; all processes call it."""
    for table in growing_tables(model):
        if table.is_divided:
            _replace_states(optimizers, table, table.gather_rows())


@contextmanager
def whole_tables(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[None]:
    """Let every process store the rows of all, with their moments, until the `with` block ends."""
    divided = [table for table in growing_tables(model) if table.is_divided]
    gather_tables(model, optimizers)
    yield
    for table in divided:
        _replace_states(optimizers, table, table.divide_rows())


def _replace_states(
    optimizers: Sequence[torch.optim.Optimizer], table: GrowingTable, change: Callable[[Tensor], Tensor]
) -> None:
    """Change the state that optimizers have of the rows of a table as the rows themselves were changed."""
    for optimizer in optimizers:
        for state, name in row_states(optimizer, table.weight):
            state[name] = change(state[name])
