"""Inputs of HSTU's attention, and a forward and backward pass, for tests of the blocks and of the fused kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nextitem.core.jagged import offsets_of
from nextitem.ops.hstu_attention import Layout

SECOND = 1000
DAY = 86400 * SECOND
LONGEST = 40


def make(
    lengths: list[int],
    *,
    heads: int = 2,
    widths: tuple[int, int] = (3, 4),
    num_queries: list[int] | None = None,
    longest: int = LONGEST,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> tuple[list[Tensor], Layout]:
    """Return random inputs of the attention, and a layout with ascending times.

    The inputs are query, key, value, position weights and time weights, the last two in float32 or float64.
    """
    generator = torch.Generator().manual_seed(0)
    total, count = sum(lengths), sum(lengths if num_queries is None else num_queries)
    bias_dtype = dtype if dtype == torch.float64 else torch.float32

    def sample(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, kind).requires_grad_()

    parts = [sample(count, heads, widths[0]), sample(total, heads, widths[0]), sample(total, heads, widths[1])]
    parts += [sample(2 * longest - 1, kind=bias_dtype), sample(129, kind=bias_dtype)]
    steps = torch.randint(0, 40 * DAY, (total,), generator=generator) * torch.randint(
        0, 2, (total,), generator=generator
    )
    times = steps.cumsum(0)
    offsets = offsets_of(torch.tensor(lengths))
    queries = [torch.arange(int(end) - n, int(end)) for end, n in zip(offsets[1:], num_queries or lengths, strict=True)]
    query_times = (times + 5 * SECOND)[torch.cat(queries)] if queries else times
    return parts, Layout(
        offsets.to(device),
        None if num_queries is None else offsets_of(torch.tensor(num_queries)).to(device),
        query_times.to(device),
        times.to(device),
    )


def run(
    attention: Callable[..., Tensor], parts: list[Tensor], layout: Layout, *, position: bool, time: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the output of an attention function, and the gradients of the inputs that it uses."""
    used = [*parts[:3], *([parts[3]] if position else []), *([parts[4]] if time else [])]
    out = attention(
        *parts[:3],
        layout,
        normaliser=7.0,
        scale=0.8,
        position_weights=parts[3] if position else None,
        time_weights=parts[4] if time else None,
    )
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(out)
    return out.detach(), torch.autograd.grad((out * weights).sum(), used)
