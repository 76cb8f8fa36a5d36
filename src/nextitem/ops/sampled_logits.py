"""Logits of sampled items that differ by position, computed without storing a vector for each of the T * S pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

PAIRS_AT_ONCE = 2**20  # entries of vectors that are gathered at a time: 4 MiB in float32 stay in the cache of a CPU


def sampled_logits(hidden: Tensor, table: Tensor, items: Tensor) -> Tensor:
    """Return the logits `hidden[t] . table[items[t, s]]` of the sampled items of each position, [T, S].

    `hidden [T, D]`, `table [N + 1, D]`, `items [T, S]` int64. Vectors are gathered for a few positions at a time, and
    again in the backward pass. Computing the logits of the whole table and gathering columns is slower, unless N is
    less than about 15 S (benchmarks/sampled_logits.py).
    """
    out: Tensor = _SampledLogits.apply(hidden, table, items)  # type: ignore[no-untyped-call]
    return out


def sampled_logits_reference(hidden: Tensor, table: Tensor, items: Tensor) -> Tensor:
    """Return what `sampled_logits` returns, computed from all gathered vectors [T, S, D] at once."""
    return torch.einsum("td,tsd->ts", hidden, table[items])


class _SampledLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Tensor, items: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, table, items)
        out = hidden.new_empty(items.shape)
        for part in _parts(hidden, items):
            vectors = F.embedding(items[part], table).to(hidden.dtype)
            out[part] = torch.bmm(vectors, hidden[part, :, None])[..., 0]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, table, items = ctx.saved_tensors
        grad_hidden, grad_table = torch.empty_like(hidden), torch.zeros_like(table)
        for part in _parts(hidden, items):
            vectors = F.embedding(items[part], table).to(hidden.dtype)
            grad_hidden[part] = torch.bmm(grad[part, None], vectors)[:, 0]
            grad_vectors = (grad[part, :, None] * hidden[part, None]).flatten(0, 1)
            grad_table.index_add_(0, items[part].flatten(), grad_vectors.to(table.dtype))
        return grad_hidden, grad_table, None


def _parts(hidden: Tensor, items: Tensor) -> list[slice]:
    rows = max(1, PAIRS_AT_ONCE // max(1, items.shape[1] * hidden.shape[1]))
    return [slice(start, start + rows) for start in range(0, len(hidden), rows)]
